"""Who waits and who runs in one place, and when those who find it full should come back: each at a time of its own.

One time for all would bring all of them back at once, to be turned away again; clients try twice and give up. So the
times follow the speed of the answers. Knows no HTTP and no model.
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
    """What waits and runs in one place, and the turns that were given to those who found it full."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        at_least_s: int = 1,
        num_places: int = 0,
        max_waiting: int | None = None,
    ):
        """`num_places`: how many run at the same time; `max_waiting`: beside them. None = no limit."""
        self._clock, self._at_least_s = clock, at_least_s
        self.num_places, self.max_waiting = num_places, max_waiting
        self._num_waiting = self._num_running = 0
        self._busy_since = 0.0
        self._ended: deque[float] = deque()
        self._next_turn = 0.0

    @property
    def is_full(self) -> bool:
        """Would one more wait behind as many as may wait?"""
        free = max(0, self.num_places - self._num_running)
        return self.max_waiting is not None and self._num_waiting >= self.max_waiting + free

    @contextmanager
    def inside(self) -> Iterator[Callable[[], None]]:
        """One request, until it ends, however it ends. It waits until what this gives is called; then it runs."""
        has_begun = False

        def begin() -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                self._begin()

        self._num_waiting += 1
        try:
            yield begin
        finally:
            if has_begun:
                self._num_running -= 1
                self._ended.append(self._clock())
                self._forget()
            else:
                self._num_waiting -= 1

    def _begin(self) -> None:
        if not self._num_running:
            self._busy_since = self._clock()
            self._ended.clear()
        self._num_waiting -= 1
        self._num_running += 1

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
