"""An endpoint without Ray that keeps live records, and what lies in its store."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.asgi import LAB, USER, Answered, exchanged

from data.live_records import LiveRecord, read_live
from serve.answering import Score
from serve.live import Live
from serve.live_store import LiveSettings, LiveStore
from serve.protocol import ProtocolError
from serve.request import GenerationRequest
from serve.telemetry import Telemetry

CHAT = "/v1/chat/completions"
NOW_S = 1_796_000_000.0
VALUES = LAB.defaults() | {"humor": 2.5}
"""What the predictor of these tests measures."""


async def sent(app: Any, fields: dict[str, Any], path: str = CHAT, key: str | None = None) -> Answered:
    """The answer to a request; one at CHAT asks for something."""
    body = json.dumps({"messages": [USER], **fields} if path == CHAT else fields).encode()
    return await exchanged(app, "POST", path, body, key=key)


class Counted(Telemetry):
    """Counts what was dropped, and the gaps."""

    def __init__(self) -> None:
        super().__init__(None, access_log=False)
        self.dropped: list[str] = []
        self.observed: list[dict[str, float]] = []

    def live_dropped(self, waited_for: str) -> None:
        self.dropped.append(waited_for)

    def gaps(self, model: str, gaps: Any) -> None:
        assert model == "demo"
        self.observed.append(dict(gaps))


class Predictor:
    """Gives every answer the same values; fails or waits if told so."""

    def __init__(self) -> None:
        self.num = 0
        self.fails = False
        self.go = asyncio.Event()
        self.go.set()

    async def score(self, request: GenerationRequest, answer: str) -> dict[str, float]:
        self.num += 1
        await self.go.wait()
        if self.fails:
            raise ProtocolError("away", code="scorer_failed", status=503)
        return {name: float(value) for name, value in VALUES.items()} if answer else {}


def live_in(
    folder: object,
    score: Score,
    telemetry: Telemetry | None = None,
    clock: Callable[[], float] = lambda: NOW_S,
    draw: Callable[[], float] = lambda: 0.5,
    **settings: Any,
) -> Live:
    """Over the store in a folder."""
    found = LiveSettings(store=str(folder), **settings)
    return Live(LiveStore(str(folder)), found, score, telemetry or Counted(), clock, draw)


def records(folder: Path) -> list[LiveRecord]:
    """All of them; none may be broken."""
    if not any(folder.rglob("*.jsonl")):
        return []
    found = list(read_live(str(folder)))
    assert all(isinstance(record, LiveRecord) for record in found), found
    return [record for record in found if isinstance(record, LiveRecord)]
