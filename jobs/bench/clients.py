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
    first_text_s: list[float] = field(default_factory=list)
    """Of each request, from its sending to its first text."""
    failures: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return round(self.tokens / self.seconds, 1)

    def percentile_s(self, share: float) -> float | None:
        """Of the time to the first text; None where nobody waited for one."""
        ordered = sorted(self.first_text_s)
        return None if not ordered else round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    def __str__(self) -> str:
        failed = f", {len(self.failures)} failed: {self.failures[0]}" if self.failures else ""
        first = f"first text {self.percentile_s(0.5)} s (p95 {self.percentile_s(0.95)} s)"
        return f"{self.tokens_per_s} tokens/s, {first}{failed}"


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
                tokens, first_s = exchange(url, body)
            except (OSError, http.client.HTTPException, ValueError) as problem:
                with lock:
                    result.failures.append(str(problem)[:200])
                continue
            with lock:
                result.tokens += tokens
                result.first_text_s += [] if first_s is None else [first_s]

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.monotonic() - started
    return result


def exchange(url: str, body: dict[str, Any]) -> tuple[int, float | None]:
    """One streamed answer: its tokens, and the seconds to its first text (None for an answer of blanks alone).

    Raises UserError for any other answer of the server.
    """
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    started, first_s, pieces, counted = time.monotonic(), None, 0, None
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise UserError(f"status {answer.status}: {answer.read(200)!r}")
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise UserError(str(chunk["error"]))
            if chunk.get("usage"):
                counted = chunk["usage"]["completion_tokens"]
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                pieces += 1
                first_s = first_s or time.monotonic() - started
    finally:
        connection.close()
    if not (counted or pieces):
        raise UserError("an answer without tokens")
    return counted or pieces, first_s
