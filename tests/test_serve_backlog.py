"""Callers that were turned away come back one after another, at the speed of the answers."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from support.manual_clock import ManualClock

from serve.backlog import MAX_WAIT_S, Backlog

Inside: TypeAlias = AbstractContextManager[Callable[[], None]]
RETRIES = 2
"""Of OpenAI's clients, by default."""


@dataclass
class Place:
    """`num_writing` answers at the same time, and a queue; who finds it full comes back when told, or gives up."""

    capacity: int
    num_writing: int
    answer_s: float
    clock: ManualClock = field(default_factory=ManualClock)
    answered: int = 0

    def serve(self, callers: int) -> int:
        """How many of `callers` that come within half a second are answered."""
        backlog = Backlog(self.clock, 3, self.num_writing, self.capacity - self.num_writing)
        order, draw = itertools.count(), random.Random(1)
        queue: deque[tuple[Inside, Callable[[], None]]] = deque()
        events: list[tuple[float, int, Inside | int]] = []
        for _ in range(callers):
            heapq.heappush(events, (draw.random() / 2, next(order), RETRIES))
        writing = 0
        while events:
            self.clock.now, _, what = heapq.heappop(events)
            if not isinstance(what, int):
                what.__exit__(None, None, None)
                self.answered, writing = self.answered + 1, writing - 1
            elif not backlog.is_full:
                place = backlog.inside()
                queue.append((place, place.__enter__()))
            elif what:
                heapq.heappush(events, (self.clock.now + backlog.retry_after_s(), next(order), what - 1))
            while queue and writing < self.num_writing:
                place, begin = queue.popleft()
                begin()
                took_s = self.answer_s * (0.5 + draw.random())
                heapq.heappush(events, (self.clock.now + took_s, next(order), place))
                writing += 1
        return self.answered


@pytest.mark.case("200 clients at once, each tries three times")
@pytest.mark.parametrize("answer_s", [0.5, 1, 2, 3, 5])
def test_all_of_200_clients_with_default_retries_are_answered(answer_s: float) -> None:
    assert Place(capacity=96, num_writing=16, answer_s=answer_s).serve(200) == 200
    assert Place(capacity=96, num_writing=2, answer_s=answer_s / 8).serve(200) == 200


def test_each_one_has_a_turn_of_its_own() -> None:
    backlog = Backlog(ManualClock(), at_least_s=3)
    waits = [backlog.retry_after_s() for _ in range(200)]
    assert waits[0] == 3
    assert max(waits) <= MAX_WAIT_S, "longer times are taken for none"
    assert len(set(waits)) > 30
    assert waits[:100] == sorted(waits[:100])


def test_the_faster_the_answers_the_sooner_the_turns() -> None:
    def last_of_twenty(answer_s: float) -> int:
        clock = ManualClock()
        backlog = Backlog(clock)
        with backlog.inside() as begin:  # always something runs
            begin()
            for _ in range(10):
                with backlog.inside() as begin_another:
                    begin_another()
                    clock.now += answer_s
            return [backlog.retry_after_s() for _ in range(20)][-1]

    assert last_of_twenty(0.1) < last_of_twenty(0.5) < last_of_twenty(2)


def test_a_place_is_full_when_as_many_wait_as_may() -> None:
    backlog = Backlog(ManualClock(), num_places=2, max_waiting=1)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(backlog.inside()) for _ in range(3))
        assert backlog.is_full, "two will run at once, one waits"
        first()
        first()
        assert backlog.is_full
        second()
        third()
        assert not backlog.is_full, "a third replica may have taken it"
        stack.enter_context(backlog.inside())
        assert backlog.is_full
    assert not backlog.is_full
    with Backlog(ManualClock()).inside():
        assert not Backlog(ManualClock()).is_full
