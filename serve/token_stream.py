"""An answer's steps on their way from the engine's thread to the event loop. Knows no text and no Ray.

The engine makes hundreds of steps a second, and waking the loop for each takes from the engine the very lock it computes under. So the loop is
woken for the first step and the last; in between it looks by itself, every so often, and takes all that has come.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.generation.protocol import Engine, GenerationStep

ENGINE_CHECK_S = 5.0
"""How often an answer that has not begun looks whether the engine still lives."""
FULL_PACE_STREAMS = 4
"""So many streams speak as often as `every_s` says; of more, each speaks less often, so that all together send no more messages.

A message takes some 3 ms of CPU on its way through replica, ingress and proxy, half of them where the engine computes, so that at full pace sixteen
streams would cost it a tenth of its tokens."""
MOST_STRETCH = 5.0
"""But no stream is stretched further: nobody should wait for half a sentence, and who serves hundreds at a time has more cores."""


class Pace:
    """How long the steps of a stream may lie, given how many streams there are: up to FULL_PACE_STREAMS `every_s`, with more proportionally longer."""

    def __init__(self, every_s: float):
        self._full_s, self._streams = every_s, 0

    @property
    def every_s(self) -> float:
        return self._full_s * min(MOST_STRETCH, max(1.0, self._streams / FULL_PACE_STREAMS))

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One stream more, for as long as this is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


class TokenStream:
    """A listener for one request; made in the event loop that will take from it."""

    def __init__(self, pace: Pace):
        """`pace` says how long steps that are neither the first nor the last may lie here."""
        self._pace = pace
        self._steps: deque[GenerationStep] = deque()
        self._loop, self._ready, self._begun = asyncio.get_running_loop(), asyncio.Event(), False

    def __call__(self, step: "GenerationStep") -> None:
        """From the engine's thread."""
        self._steps.append(step)
        if step.finish is not None or not self._begun:
            self._begun = True
            self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self, engine: "Engine") -> "list[GenerationStep]":
        """At least one step, and all that have come meanwhile. Raises RuntimeError if none will come."""
        while True:
            begun = self._begun
            try:
                await asyncio.wait_for(self._ready.wait(), self._pace.every_s if begun else ENGINE_CHECK_S)
            except TimeoutError:
                if not self._steps and engine.error is not None:
                    raise RuntimeError(f"the engine died: {engine.error}") from None
            if self._steps:
                break
        arrived = [self._steps.popleft() for _ in range(len(self._steps))]
        if arrived[-1].finish is None:
            self._ready.clear()
            if self._steps and self._steps[-1].finish is not None:  # it came while we cleared
                self._ready.set()
        return arrived
