"""An answer's steps on their way from the engine's thread to the event loop. Knows no text and no Ray.

The engine makes hundreds of steps a second, and waking the loop for each takes from the engine the very lock it computes under. So the loop is
woken for the first step and the last; in between it looks by itself, every so often, and takes all that has come.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.generation import Engine, Step

ENGINE_CHECK_S = 5.0
"""How often an answer that has not begun looks whether the engine still lives."""


class Arrivals:
    """A listener for one request; made in the event loop that will take from it."""

    def __init__(self, every_s: float):
        """`every_s`: how long steps that are neither the first nor the last may lie here."""
        self._every_s = every_s
        self._steps: deque[Step] = deque()
        self._loop, self._ready, self._begun = asyncio.get_running_loop(), asyncio.Event(), False

    def __call__(self, step: "Step") -> None:
        """From the engine's thread."""
        self._steps.append(step)
        if step.finish is not None or not self._begun:
            self._begun = True
            self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self, engine: "Engine") -> "list[Step]":
        """At least one step, and all that have come meanwhile. Raises RuntimeError if none will come."""
        while True:
            begun = self._begun
            try:
                await asyncio.wait_for(self._ready.wait(), self._every_s if begun else ENGINE_CHECK_S)
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
