"""A replica without Ray that changes its policy: running answers end on the old one, late ones begin on the new."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest
from support.policies import turned_policy
from support.replica import REQUEST, collected, replica_of, text_of

from actors.generation.protocol import Sampling
from serve.request import Delta, Event, Revision, Started


def test_a_swap_while_a_prompt_is_tokenized_takes_the_new_policy(tiny_policy: str, other_policy: str) -> None:
    replica = replica_of(tiny_policy)
    old = replica._loaded
    tokenize, begun, go_on = old.text.prompt, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> list[int]:
        begun.set()
        assert go_on.wait(10)
        return tokenize(*arguments)

    old.text.prompt = slow  # type: ignore[method-assign]
    long = replace(REQUEST, system=" " * 5000)

    async def go() -> list[Event]:
        answer = asyncio.ensure_future(collected(replica, long))
        await asyncio.to_thread(begun.wait, 10)
        await replica.swap(Revision(other_policy, 1))
        await asyncio.sleep(0.5)
        assert old.engine.load.running == 0
        go_on.set()
        return await answer

    events = asyncio.run(go())
    assert isinstance(events[-1], Delta)
    assert replica._loaded.engine.load.generated_tokens > 0
    replica._loaded.engine.close()


@pytest.fixture(scope="module")
def other_policy(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return turned_policy(tiny_base, str(tmp_path_factory.mktemp("other")))


def test_a_swap_changes_what_new_requests_get_and_running_ones_end_on_the_old(
    tiny_policy: str, other_policy: str
) -> None:
    replica = replica_of(tiny_policy)
    old_engine = replica._loaded.engine
    sampled = replace(REQUEST, sampling=Sampling(40, seed=3))

    async def go() -> tuple[str, str, str]:
        before = text_of(await collected(replica, sampled))
        running = replica.generate(sampled)
        assert isinstance(await anext(running), Started)
        assert (await replica.swap(Revision(other_policy, 2))).policy == other_policy
        assert (await replica.swap(Revision(tiny_policy, 1))).policy == other_policy, "an older revision came late"
        during = text_of([event async for event in running])
        after = text_of(await collected(replica, sampled))
        await asyncio.sleep(0.5)
        return before, during, after

    before, during, after = asyncio.run(go())
    assert before == during != after
    with pytest.raises(RuntimeError, match="closed"):
        old_engine.submit([5], Sampling(1), lambda _: None)
    replica._loaded.engine.close()


def test_a_request_brings_a_late_replica_up_to_date(tiny_policy: str, other_policy: str) -> None:
    replica = replica_of(tiny_policy)

    async def go() -> str:
        await collected(replica, replace(REQUEST, revision=Revision(other_policy, 5)))
        for _ in range(100):
            await asyncio.sleep(0.05)
            if (await replica.info()).policy == other_policy:
                break
        return (await replica.info()).policy

    assert asyncio.run(go()) == other_policy
    replica._loaded.engine.close()


def test_a_policy_that_cannot_take_over_changes_nothing(
    tiny_policy: str, tiny_base: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    replica = replica_of(tiny_policy)
    stranger = turned_policy(tiny_base, str(tmp_path_factory.mktemp("stranger")), "oasst")
    with pytest.raises(ValueError, match="has attribute schema 'lab'"):
        asyncio.run(replica.swap(Revision(stranger, 1)))
    with pytest.raises(ValueError, match="no readable"):
        asyncio.run(replica.swap(Revision("/nowhere", 2)))
    assert asyncio.run(replica.info()).policy == tiny_policy
    assert isinstance(asyncio.run(collected(replica, REQUEST))[0], Started)
    replica._loaded.engine.close()
