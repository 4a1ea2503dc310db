"""Streaming clients of a chat endpoint with OpenAI's protocol, a given number at a time. Knows no server.

Uses the standard library alone, so that it costs little.
"""

import http.client
import json
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from data.errors import UserError

TIMEOUT_S = 300


@dataclass
class LoadResult:
    """What the clients measured."""

    tokens: int = 0
    """As the server counts them; where it counts none, pieces of text."""
    seconds: float = 0.0
    first_byte_s: list[float] = field(default_factory=list)
    """Of each request, from its sending to its first event; the headers are there by then."""
    first_text_s: list[float] = field(default_factory=list)
    """The same to its first text."""
    failures: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return round(self.tokens / self.seconds, 1)

    def __str__(self) -> str:
        failed = f", {len(self.failures)} failed: {self.failures[0]}" if self.failures else ""
        first = f"first text {percentile_s(self.first_text_s, 0.5)} s (p95 {percentile_s(self.first_text_s, 0.95)} s)"
        return f"{self.tokens_per_s} tokens/s, {first}{failed}"


def percentile_s(seconds: Sequence[float], share: float) -> float | None:
    """None where nobody waited."""
    ordered = sorted(seconds)
    return None if not ordered else round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


@dataclass(frozen=True)
class Exchanged:
    """One streamed answer."""

    tokens: int
    first_byte_s: float
    first_text_s: float | None
    """None for an answer of blanks alone."""


def load(url: str, bodies: Sequence[dict[str, Any]], num_clients: int) -> LoadResult:
    """Send all bodies to /v1/chat/completions, `num_clients` at a time, each client on one connection after another."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for body in bodies:
        waiting.put({**body, "stream": True, "stream_options": {"include_usage": True}})
    result, lock = LoadResult(), threading.Lock()

    def client() -> None:
        while True:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                exchanged = exchange(url, body)
            except (OSError, http.client.HTTPException, ValueError) as problem:
                with lock:
                    result.failures.append(str(problem)[:200])
                continue
            with lock:
                result.tokens += exchanged.tokens
                result.first_byte_s.append(exchanged.first_byte_s)
                result.first_text_s += [] if exchanged.first_text_s is None else [exchanged.first_text_s]

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.monotonic() - started
    return result


def exchange(url: str, body: dict[str, Any]) -> Exchanged:
    """One streamed answer; raises UserError for any other answer of the server."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    started, pieces, counted = time.monotonic(), 0, None
    byte_s = text_s = None
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise UserError(f"status {answer.status}: {answer.read(200)!r}")
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            byte_s = byte_s or time.monotonic() - started
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise UserError(str(chunk["error"]))
            if chunk.get("usage"):
                counted = chunk["usage"]["completion_tokens"]
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                pieces += 1
                text_s = text_s or time.monotonic() - started
    finally:
        connection.close()
    if byte_s is None or not (counted or pieces):
        raise UserError("an answer without tokens")
    return Exchanged(counted or pieces, byte_s, text_s)
