"""Bodies on their way in: one that stalls, trickles or never ends takes its own place and nobody else's."""

import asyncio
import gzip
import json
import time
import zlib
from collections import Counter
from typing import Any

import pytest
from fastapi import FastAPI
from support.asgi import KEYS_TEXT, USER, Answered, Client, Scripted, app_around, exchanged, scope_of

import serve.bodies
from serve.bodies import BodyLimits

CHAT = "/v1/chat/completions"


def packed(body: bytes) -> bytes:
    """Without the time of day: names of tests have it, and two processes must find the same names."""
    return gzip.compress(body, mtime=0)


BODY = json.dumps({"messages": [USER]}).encode()
SHORT = BodyLimits(max_bytes=2000, timeout_s=0.2, max_open=4)


class Slow(Client):
    """Sends a byte every `every_s`, without an end; None: nothing at all."""

    def __init__(self, every_s: float | None):
        super().__init__(b"", None, None)
        self._every_s, self.num_sent = every_s, 0

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(3600 if self._every_s is None else self._every_s)
        self.num_sent += 1
        return {"type": "http.request", "body": b" ", "more_body": True}


async def slowly(app: FastAPI, every_s: float | None = None, path: str = CHAT, **scope: Any) -> Answered:
    client = Slow(every_s)
    await asyncio.wait_for(app(scope_of("POST", path, **scope), client.receive, client.send), 20)
    return client.answered


def code(answered: Answered) -> str:
    return str(answered.json["error"]["code"])


@pytest.mark.case("B10: a body that stalls")
@pytest.mark.parametrize("every_s", [None, 0.01])
def test_a_body_has_a_deadline_as_a_whole(every_s: float | None) -> None:
    started = time.monotonic()
    answered = asyncio.run(slowly(app_around(Scripted().generate, body=SHORT), every_s))
    assert (answered.status, code(answered)) == (408, "body_timeout")
    assert answered.headers["connection"] == "close"
    assert time.monotonic() - started < 5
    assert "within 0.2 s" in answered.json["error"]["message"]


@pytest.mark.case("B10: a body without an end")
def test_a_body_that_is_too_long_is_read_no_further() -> None:
    for length in ("", "3000", "9" * 5000):
        client = Slow(0.0)
        app = app_around(Scripted().generate, body=BodyLimits(max_bytes=10))
        asyncio.run(app(scope_of("POST", CHAT, headers={"content-length": length}), client.receive, client.send))
        assert (client.answered.status, client.answered.headers["connection"]) == (413, "close")
        assert client.num_sent <= 11
        if length == "3000":
            assert client.num_sent == 0, "what it announces is enough"


@pytest.mark.case("B10: 1,200 stalled bodies")
def test_stalled_bodies_leave_the_endpoint_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.bodies, "GRACE_S", 60)
    limits = BodyLimits()
    app = app_around(Scripted().generate)

    async def go() -> tuple[Counter[str], list[int]]:
        stalled = [asyncio.create_task(slowly(app)) for _ in range(1200)]
        while sum(task.done() for task in stalled) < 1200 - limits.max_open:
            await asyncio.sleep(0.01)
        refused = Counter(code(task.result()) for task in stalled if task.done())
        monkeypatch.setattr(serve.bodies, "GRACE_S", 0)
        others = [(await exchanged(app, "POST", CHAT, BODY)).status for _ in range(5)]
        others.append((await exchanged(app, "GET", "/healthz", b"")).status)
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        return refused, others

    refused, others = asyncio.run(go())
    assert refused == {"too_many_bodies": 1200 - limits.max_open}
    assert others == [200] * 6


def test_a_body_that_has_only_begun_is_not_pushed_out() -> None:
    app = app_around(Scripted().generate, body=SHORT)

    async def go() -> list[str]:
        return [code(answered) for answered in await asyncio.gather(*(slowly(app) for _ in range(6)))]

    found = asyncio.run(go())
    assert found == ["body_timeout"] * 4 + ["too_many_bodies"] * 2


def test_the_oldest_makes_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.bodies, "GRACE_S", 0.0)
    app = app_around(Scripted().generate, body=BodyLimits(timeout_s=60, max_open=2))

    async def go() -> list[bool]:
        tasks = []
        for _ in range(5):
            tasks.append(asyncio.create_task(slowly(app)))
            await asyncio.sleep(0.01)
        over = [task.done() for task in tasks]
        assert {code(task.result()) for task in tasks[:3]} == {"body_timeout"}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return over

    assert asyncio.run(go()) == [True, True, True, False, False]


@pytest.mark.case("B10: one team's bodies are not another's")
def test_bodies_are_counted_by_team_and_by_address() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT, body=BodyLimits(timeout_s=0.3, max_open=2))

    async def go() -> list[int]:
        callers = [("all", "a"), ("all", "b"), ("all", "c"), ("games", "a"), ("games", "a"), ("ops", "d"), ("ops", "b")]
        slow = (slowly(app, key=f"key-{team}", peer=peer) for team, peer in callers)
        return [answered.status for answered in await asyncio.gather(*slow)]

    # The third of team `all`, and the third from address `a`.
    assert asyncio.run(go()) == [408, 408, 429, 408, 429, 408, 408]


def test_the_body_of_a_swap_has_the_same_limits() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT, body=SHORT)
    answered = asyncio.run(slowly(app, path="/admin/models/demo", key="key-ops"))
    assert (answered.status, code(answered)) == (408, "body_timeout")


def test_a_caller_without_a_key_sends_its_body_to_nobody() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    assert asyncio.run(asyncio.wait_for(slowly(app), 5)).status == 401


@pytest.mark.case("a body that is packed")
@pytest.mark.parametrize(
    ("encoding", "body", "status", "reason"),
    [
        ("gzip", packed(BODY), 200, None),
        ("X-GZIP", packed(BODY), 200, None),
        ("deflate", zlib.compress(BODY), 200, None),
        ("identity", BODY, 200, None),
        ("gzip", BODY, 400, "invalid_encoding"),
        ("gzip", packed(BODY)[:20], 400, "invalid_json"),
        ("br", BODY, 415, "unsupported_encoding"),
        ("gzip, gzip", packed(packed(BODY)), 415, "unsupported_encoding"),
        ("gzip", packed(b" " * 2001), 413, "body_too_large"),
        ("gzip", packed(b" " * (1 << 26)), 413, "body_too_large"),
    ],
)
def test_a_body_may_be_packed_and_its_limit_holds_for_what_is_in_it(
    encoding: str, body: bytes, status: int, reason: str | None
) -> None:
    app = app_around(
        Scripted().generate, body=BodyLimits(max_bytes=2000 if status < 413 or len(body) < 100 else 70_000)
    )
    answered = asyncio.run(exchanged(app, "POST", CHAT, body, headers={"content-encoding": encoding}))
    assert answered.status == status
    assert reason is None or code(answered) == reason
