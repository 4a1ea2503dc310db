"""A stream of events with nothing to send stays open."""

import asyncio
from typing import Any

import pytest

from serve.event_stream import COMMENT, KeptAlive


def body(text: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


async def kept(every_s: float, wait_s: float, last: bool = False) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", message["type"]))

    async with KeptAlive(send, every_s) as out:
        await asyncio.sleep(wait_s)
        await out({"type": "http.response.start", "status": 200})
        await out(body(b"a", more=not last))
        await asyncio.sleep(wait_s)
    return sent


@pytest.mark.case("a proxy that closes what is silent")
def test_a_comment_is_sent_while_there_is_nothing_else() -> None:
    sent = asyncio.run(kept(0.01, 0.2))
    assert sent[:3] == ["http.response.start", b"a", COMMENT], "not before the answer begins"
    assert set(sent[2:]) == {COMMENT}


def test_no_comment_between_pieces_that_come_in_time_nor_after_the_end() -> None:
    assert asyncio.run(kept(60, 0.0)) == ["http.response.start", b"a"]
    assert asyncio.run(kept(0.01, 0.1, last=True)) == ["http.response.start", b"a"]


def test_a_caller_that_is_gone_is_for_the_stream_to_find_out() -> None:
    async def gone(message: Any) -> None:
        if message.get("body") == COMMENT:
            raise BrokenPipeError

    async def go() -> None:
        async with KeptAlive(gone, 0.01) as out:
            await out({"type": "http.response.start", "status": 200})
            await asyncio.sleep(0.05)
            await out(body(b"a"))

    asyncio.run(go())
