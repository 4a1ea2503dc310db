"""A replica without Ray: its text is the policy's own at the dials asked for; leaving frees the slot; a dead engine is told."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from actors.generator import Sampling, complete
from data.conversation import Message
from serve.replica import Replica
from serve.wire import Delta, Event, Failed, Job, Started

JOB = Job(
    system="",
    messages=(Message("user", "Tell me about the moon."),),
    labels=(),
    attributes={},
    max_tokens=24,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    seed=3,
    stop=(),
)


@pytest.fixture(scope="module")
def replica(tiny_policy: str) -> Iterator[Replica]:
    made = Replica(tiny_policy, "tiny", "float32", max_slots=2, max_new_tokens=40)
    yield made
    made._engine.close()


async def collected(replica: Replica, job: Job) -> list[Event]:
    return [event async for event in replica.generate(job)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_the_text_is_the_policy_s_at_the_dials_asked_for(replica: Replica) -> None:
    policy = replica._policy
    for attributes in policy.schema.best(), policy.schema.defaults():
        events = asyncio.run(collected(replica, replace(JOB, attributes=attributes)))
        prompt_ids = policy.prompt("", JOB.messages, attributes)
        [(ids, finish)] = complete(replica._engine, [(prompt_ids, Sampling(max_tokens=24, seed=3))])
        assert events[0] == Started(len(prompt_ids))
        assert text_of(events) == policy.decode(ids).rstrip() != ""
        last = events[-1]
        assert isinstance(last, Delta)
        assert (last.finish, last.completion_tokens) == (finish, len(ids))


def test_a_stop_string_ends_the_answer_and_frees_the_slot(replica: Replica) -> None:
    whole = text_of(asyncio.run(collected(replica, JOB)))
    stop = whole[len(whole) // 2 :][:2]
    events = asyncio.run(collected(replica, replace(JOB, stop=(stop,))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Delta)
    assert events[-1].finish == "stop"
    wait_until_idle(replica)


def test_without_max_tokens_the_server_s_limit_holds(replica: Replica) -> None:
    last = asyncio.run(collected(replica, replace(JOB, max_tokens=None, temperature=0.0)))[-1]
    assert last == Delta("", 40, "length")


def test_leaving_frees_the_slot(replica: Replica) -> None:
    async def leave() -> None:
        async with aclosing(replica.generate(replace(JOB, max_tokens=400, temperature=0.0))) as events:
            assert isinstance(await anext(events), Started)

    for _ in range(5):
        asyncio.run(leave())
    wait_until_idle(replica)


def test_what_does_not_fit_is_refused(replica: Replica) -> None:
    for job in (
        replace(JOB, max_tokens=10**6),
        replace(JOB, max_tokens=None, messages=(Message("user", "moon " * 5000),)),
    ):
        [event] = asyncio.run(collected(replica, job))
        assert isinstance(event, Failed)
        assert (event.status, event.code) == (400, "context_length_exceeded")
        assert "context" in event.message


def test_a_dead_engine_fails_the_health_check_and_its_jobs(tiny_policy: str) -> None:
    replica = Replica(tiny_policy, "tiny", "float32", max_slots=2, max_new_tokens=40)
    asyncio.run(replica.check_health())
    replica._engine._stop_ids = None  # type: ignore[assignment]  # the next step of its thread breaks on it
    events = asyncio.run(collected(replica, JOB))
    assert isinstance(events[-1], Failed)
    assert events[-1].status == 503
    with pytest.raises(RuntimeError, match="the engine died"):
        asyncio.run(replica.check_health())
    assert isinstance(asyncio.run(collected(replica, JOB))[-1], Failed)


def wait_until_idle(replica: Replica) -> None:
    deadline = time.monotonic() + 10
    while asyncio.run(replica.num_running()):
        assert time.monotonic() < deadline, "a slot was not freed"
        time.sleep(0.01)
