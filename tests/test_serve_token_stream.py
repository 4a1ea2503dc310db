"""Steps cross from the engine's thread to the loop: none lost, in order, the first and the last at once."""

import asyncio
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from actors.generation.protocol import GenerationStep
from serve import token_stream
from serve.token_stream import Pace, TokenStream

ALIVE: Any = SimpleNamespace(error=None)


def taken(every_s: float, engine: Any, send: Any) -> list[list[GenerationStep]]:
    """What `take` gives, call by call, while `send` runs in a thread."""

    async def main() -> list[list[GenerationStep]]:
        arrived = TokenStream(Pace(every_s))
        threading.Thread(target=send, args=(arrived,)).start()
        found = [await arrived.take(engine)]
        while found[-1][-1].finish is None:
            found.append(await arrived.take(engine))
        return found

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_none_is_lost_and_few_messages_carry_many_steps() -> None:
    def send(arrived: TokenStream) -> None:
        for i in range(300):
            arrived(GenerationStep([i], "stop" if i == 299 else None))
            time.sleep(0.001)

    calls = taken(0.05, ALIVE, send)
    assert [i for call in calls for step in call for i in step.token_ids] == list(range(300))
    assert len(calls[0]) < 30, "the first does not wait for others"
    assert len(calls) < 30


def test_the_last_step_does_not_wait() -> None:
    def send(arrived: TokenStream) -> None:
        arrived(GenerationStep([1], None))
        time.sleep(0.2)
        arrived(GenerationStep([2], "length"))

    started = time.monotonic()
    assert [len(call) for call in taken(15.0, ALIVE, send)] == [1, 1]
    assert time.monotonic() - started < 10


def test_steps_that_come_as_fast_as_they_can_all_arrive() -> None:
    for _ in range(50):
        calls = taken(
            0.001, ALIVE, lambda arrived: [arrived(GenerationStep([i], "stop" if i == 40 else None)) for i in range(41)]
        )
        assert [i for call in calls for step in call for i in step.token_ids] == list(range(41))


def test_a_dead_engine_is_noticed_before_and_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_stream, "ENGINE_CHECK_S", 0.05)
    dead: Any = SimpleNamespace(error="out of memory")
    for first in ([], [GenerationStep([1], None)]):
        with pytest.raises(RuntimeError, match="the engine died: out of memory"):
            taken(0.05, dead, lambda arrived, first=first: [arrived(step) for step in first])


def test_the_more_streams_the_fewer_messages_of_each_but_no_reader_waits_for_long() -> None:
    pace = Pace(0.1)
    assert pace.every_s == 0.1
    for streams, every_s in ((1, 0.1), (4, 0.1), (8, 0.2), (16, 0.4), (500, 0.5)):
        with ExitStack() as stack:
            for _ in range(streams):
                stack.enter_context(pace.stream())
            assert pace.every_s == pytest.approx(every_s)
    assert pace.every_s == 0.1, "all have left"
