"""Callers that were turned away come back one after another, at the speed of the answers."""

import heapq
import itertools
import random
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pytest
from support.manual_clock import ManualClock

from serve.backlog import MAX_WAIT_S, Backlog

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
        backlog, order, draw = Backlog(self.clock, at_least_s=3), itertools.count(), random.Random(1)
        queue: deque[AbstractContextManager[None]] = deque()
        events: list[tuple[float, int, AbstractContextManager[None] | int]] = []
        for _ in range(callers):
            heapq.heappush(events, (draw.random() / 2, next(order), RETRIES))
        inside = writing = 0
        while events:
            self.clock.now, _, what = heapq.heappop(events)
            if not isinstance(what, int):
                what.__exit__(None, None, None)
                self.answered, inside, writing = self.answered + 1, inside - 1, writing - 1
            elif inside < self.capacity:
                place, inside = backlog.running(), inside + 1
                place.__enter__()
                queue.append(place)
            elif what:
                heapq.heappush(events, (self.clock.now + backlog.retry_after_s(), next(order), what - 1))
            while queue and writing < self.num_writing:
                took_s = self.answer_s * (0.5 + draw.random())
                heapq.heappush(events, (self.clock.now + took_s, next(order), queue.popleft()))
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
        with backlog.running():  # always something runs
            for _ in range(10):
                with backlog.running():
                    clock.now += answer_s
            return [backlog.retry_after_s() for _ in range(20)][-1]

    assert last_of_twenty(0.1) < last_of_twenty(0.5) < last_of_twenty(2)
