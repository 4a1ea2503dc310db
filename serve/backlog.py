"""When callers that were turned away should come back: each after a time of its own, at the speed of the answers.

One time for all would bring all of them back at once, to be turned away again; clients try twice and give up. Knows no
HTTP and no model.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_WAIT_S = 60
"""OpenAI's clients wait no longer, and take a longer time for none at all."""
WINDOW_S = 30.0
"""Over which the speed of the answers is measured."""
UNKNOWN_INTERVAL_S = 0.15
"""Between two answers, as long as none has ended."""
MARGIN = 1.25
"""How much later than the last measured speed says: those who are new at the door come in between."""


class Backlog:
    """What is running in one place, and the turns that were given to those who found it full."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, at_least_s: int = 1):
        self._clock, self._at_least_s = clock, at_least_s
        self._running = 0
        self._busy_since = 0.0
        self._ended: deque[float] = deque()
        self._next_turn = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """One request, until it ends, however it ends."""
        if not self._running:
            self._busy_since = self._clock()
            self._ended.clear()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._ended.append(self._clock())
            self._forget()

    def retry_after_s(self) -> int:
        """Seconds until the turn of one more that was turned away; it is behind all who have one already."""
        now = self._clock()
        self._next_turn = max(self._next_turn, now + self._at_least_s) + self._interval_s()
        if self._next_turn > now + MAX_WAIT_S:
            self._next_turn = now + MAX_WAIT_S / 2  # more than can be served in time: spread, rather than all at once
        return max(self._at_least_s, math.floor(self._next_turn - now))

    def _interval_s(self) -> float:
        """Between two requests that end, with a margin."""
        self._forget()
        if not self._ended:
            return UNKNOWN_INTERVAL_S * MARGIN
        seconds = self._clock() - max(self._busy_since, self._clock() - WINDOW_S)
        return MARGIN * seconds / len(self._ended)

    def _forget(self) -> None:
        while self._ended and self._ended[0] < self._clock() - WINDOW_S:
            self._ended.popleft()
