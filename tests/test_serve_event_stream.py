"""A stream of events with nothing to send stays open."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.asgi import USER, Scripted, app_around, ask, chat, exchanged

from serve.event_stream import COMMENT, KeptAlive
from serve.request import Delta, Event, Failed, GenerationRequest, Started


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


@pytest.mark.case("a stream that waits for a place to write")
def test_a_stream_begins_before_it_has_a_place_and_says_so_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.generation_route.OPENING_S", 0.0)
    monkeypatch.setattr("serve.event_stream.KEEP_ALIVE_S", 0.01)

    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.1)
        for event in (Started(7), Delta("So.", 1, "stop")):
            yield event

    answered = ask(app_around(generate), messages=[USER], stream=True)
    role, comment, *_ = answered.body.decode().split("\n\n")
    assert json.loads(role.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert comment == ": waiting"
    assert [c["choices"][0]["delta"].get("content") for c in answered.chunks[:-1]] == ["", "So.", None]

    async def refuse(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.1)
        yield Failed("too long", 400, code="context_length_exceeded")

    lines: list[str] = []
    answered = ask(app_around(refuse, lines=lines), messages=[USER], stream=True)
    assert (answered.status, answered.chunks[-1]["error"]["code"]) == (200, "context_length_exceeded")
    assert json.loads(lines[0])["status"] == 400, "the log has what it came to"


def test_a_refusal_that_waits_for_nobody_has_its_own_status_however_late_the_clock_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.generation_route.OPENING_S", 0.0)
    assert chat(Scripted((Failed("busy", 429, retry_after_s=3),)), stream=True).status == 429


def test_who_leaves_a_stream_that_waits_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.generation_route.OPENING_S", 0.0)
    closed: list[str] = []

    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        try:
            await asyncio.sleep(3600)
            yield Started(7)
        finally:
            closed.append(model)

    lines: list[str] = []
    body = json.dumps({"messages": [USER], "stream": True}).encode()
    asyncio.run(exchanged(app_around(generate, lines=lines), "POST", "/v1/chat/completions", body, gone_after=1))
    assert closed == ["demo"]
    assert json.loads(lines[0])["code"] == "client_left"
