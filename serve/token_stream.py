"""An answer's steps on their way from the engine's thread to the event loop. Knows no text and no Ray.

The engine makes hundreds of steps a second, and each wake-up of the loop takes the lock that the engine computes under.
So the loop is woken for the first step and the last; in between it checks periodically and takes all that has come.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from actors.generation.protocol import Engine, GenerationStep

ENGINE_CHECK_S = 5.0
"""How often an answer that has not begun checks whether the engine is alive."""
FULL_PACE_STREAMS = 4
"""Up to so many streams send every `every_s`; more send less often each, and no more messages in total.

A message takes some 3 ms of CPU in replica, ingress and proxy, half of them in the engine's process: at full pace
sixteen streams would cost the engine a tenth of its tokens."""
MAX_STRETCH = 5.0
"""The longest pause, in `every_s`: nobody should wait for half a sentence."""


class Pace:
    """How long the steps of a stream may wait: `every_s`, with more than FULL_PACE_STREAMS streams longer."""

    def __init__(self, every_s: float):
        self._full_s, self._streams = every_s, 0

    @property
    def every_s(self) -> float:
        return self._full_s * min(MAX_STRETCH, max(1.0, self._streams / FULL_PACE_STREAMS))

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One stream more, for as long as this is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


class TokenStream:
    """The steps of one request; made in the event loop that will take from it."""

    def __init__(self, pace: Pace):
        """`pace`: how long steps that are neither the first nor the last may wait here."""
        self._pace = pace
        self._steps: deque[GenerationStep] = deque()
        self._loop, self._ready, self._begun = asyncio.get_running_loop(), asyncio.Event(), False

    def __call__(self, step: GenerationStep) -> None:
        """From the engine's thread."""
        self._steps.append(step)
        if step.finish is not None or not self._begun:
            self._begun = True
            self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self, engine: Engine) -> list[GenerationStep]:
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
