"""A replica without Ray: its text is the policy's own at the requested attributes; leaving cancels."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.asgi import USER, app_around, ask
from support.replica import REQUEST, collected, replica_of, text_of

from actors.generation.protocol import Sampling, complete
from data.conversation import Message
from serve.models import ServedPolicies, ServedPolicy
from serve.replica import Replica
from serve.request import Delta, Event, Failed, GenerationRequest, Revision, Started
from serve.settings import ServedEngineSettings


@pytest.fixture(scope="module")
def replica(tiny_policy: str) -> Iterator[Replica]:
    made = replica_of(tiny_policy)
    yield made
    made._loaded.engine.close()


def test_the_text_is_the_policy_s_at_the_effective_attributes(replica: Replica) -> None:
    policy = replica._loaded.text
    for attributes in policy.schema.best(), policy.schema.defaults():
        events = asyncio.run(collected(replica, replace(REQUEST, attributes=attributes)))
        prompt_ids = policy.prompt("", REQUEST.messages, attributes)
        [(ids, finish)] = complete(replica._loaded.engine, [(prompt_ids, Sampling(max_tokens=24, seed=3))])
        assert events[0] == Started(len(prompt_ids))
        assert text_of(events) == policy.decode(ids).rstrip() != ""
        last = events[-1]
        assert isinstance(last, Delta)
        assert (last.finish, last.completion_tokens) == (finish, len(ids))


def test_candidates_behind_one_that_is_near_enough_leave_the_engine(replica: Replica) -> None:
    """Two of eight are written at a time; all are longer than what is left when the first is near enough."""

    async def near(request: GenerationRequest, answer: str) -> dict[str, float]:
        return dict(request.attributes)

    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for event in replica.generate(request):
            yield event

    app = app_around(generate, near, models=ServedPolicies([ServedPolicy(asyncio.run(replica.info()))]))
    fields: dict[str, Any] = {"messages": [USER], "best_of": 8, "max_tokens": 30, "ignore_eos": True, "seed": 0}
    whole = ask(app, **fields).json
    assert whole["usage"]["completion_tokens"] == 8 * 30
    early = ask(app, **fields, target_distance=0).json
    assert early["steering"]["early_stop"]["stopped"]
    assert early["steering"]["early_stop"]["distance"] == 0
    assert early["steering"]["early_stop"]["written"] < 8
    assert early["usage"]["completion_tokens"] < 8 * 30
    wait_until_idle(replica)


def test_a_stop_string_ends_the_answer_and_the_request(replica: Replica) -> None:
    whole = text_of(asyncio.run(collected(replica, REQUEST)))
    stop = whole[len(whole) // 2 :][:2]
    events = asyncio.run(collected(replica, replace(REQUEST, stop=(stop,))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Delta)
    assert events[-1].finish == "stop"
    wait_until_idle(replica)


@pytest.mark.case("a longer answer than there is room for")
def test_the_length_is_cut_to_what_the_prompt_leaves(replica: Replica) -> None:
    started, *_, last = asyncio.run(collected(replica, replace(REQUEST, sampling=Sampling(10**6, temperature=0.0))))
    context = asyncio.run(replica.info()).context
    assert isinstance(started, Started)
    assert last == Delta(last.text, context - started.prompt_tokens, "length")  # type: ignore[union-attr]


@pytest.mark.case("an answer to continue")
def test_an_answer_that_is_begun_is_continued(replica: Replica) -> None:
    request = replace(REQUEST, messages=(*REQUEST.messages, Message("assistant", "It is")))
    events, policy = asyncio.run(collected(replica, request)), replica._loaded.text
    prompt_ids = policy.prompt("", request.messages, {})
    [(ids, _)] = complete(replica._loaded.engine, [(prompt_ids, Sampling(max_tokens=24, seed=3))])
    before = prompt_ids[-2:]
    assert text_of(events) == policy.decode([*before, *ids]).removeprefix(policy.decode(before)).rstrip() != ""


def test_who_reads_along_gets_pieces_and_who_does_not_all_at_the_end(
    tiny_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.replica.PROGRESS_S", 0.0)
    replica = Replica("tiny", Revision(tiny_policy, 0), ServedEngineSettings(max_num_seqs=2, stream_every_s=0.001))
    long = replace(REQUEST, sampling=Sampling(200, seed=3))
    pieces, whole = (asyncio.run(collected(replica, replace(long, stream=stream)))[1:] for stream in (True, False))
    replica._loaded.engine.close()
    assert len(pieces) > 2
    assert text_of(pieces) == text_of(whole) != ""
    assert [bool(event.text) for event in whole if isinstance(event, Delta)] == [False] * (len(whole) - 1) + [True]
    counts = [event.completion_tokens for event in whole if isinstance(event, Delta)]
    assert len(counts) > 2, "it reports how far it is"
    assert counts == sorted(counts)


def test_who_reads_along_slows_the_others_down_and_who_does_not_does_not(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.token_stream.FULL_PACE_STREAMS", 1)
    alone_s = ServedEngineSettings().stream_every_s

    async def paces() -> list[float]:
        found = []
        async with aclosing(replica.generate(replace(REQUEST, sampling=Sampling(400, seed=3), stream=True))) as one:
            async with (
                aclosing(replica.generate(replace(REQUEST, sampling=Sampling(400, seed=3), stream=True))) as two,
                aclosing(replica.generate(REQUEST)) as quiet,
            ):
                for events in (quiet, one, one, two, two):  # the first event is sent before its first text
                    await anext(events)
                    found.append(replica._pace.every_s)
            found.append(replica._pace.every_s)
        return [*found, replica._pace.every_s]

    assert asyncio.run(paces()) == pytest.approx([alone_s, alone_s, alone_s, alone_s, 2 * alone_s, alone_s, alone_s])
    wait_until_idle(replica)


def test_leaving_cancels_the_request(replica: Replica) -> None:
    async def leave() -> None:
        async with aclosing(replica.generate(replace(REQUEST, sampling=Sampling(400, temperature=0.0)))) as events:
            assert isinstance(await anext(events), Started)

    for _ in range(5):
        asyncio.run(leave())
    wait_until_idle(replica)


def test_what_does_not_fit_is_refused(replica: Replica) -> None:
    [event] = asyncio.run(collected(replica, replace(REQUEST, messages=(Message("user", "moon " * 5000),))))
    assert isinstance(event, Failed)
    assert (event.status, event.code) == (400, "context_length_exceeded")
    assert "context" in event.message


@pytest.mark.case("B10: refused work is charged")
def test_what_was_tokenized_and_refused_says_what_it_cost(replica: Replica) -> None:
    def cost(request: GenerationRequest) -> int:
        [event] = asyncio.run(collected(replica, request))
        assert isinstance(event, Failed)
        return event.prompt_tokens

    text = "moon " * 600
    long = replace(REQUEST, messages=(Message("user", text),))
    assert cost(long) == len(replica._loaded.text.prompt("", long.messages, {})) > 512
    assert cost(replace(long, messages=(Message("user", text * 1000),))) == 0, "its characters were enough"


@pytest.mark.case("B10: an engine's context is bounded")
def test_a_context_below_the_model_s_is_said(tiny_policy: str) -> None:
    replica = Replica("tiny", Revision(tiny_policy, 0), ServedEngineSettings(max_num_seqs=2, max_model_len=60))
    [event] = asyncio.run(collected(replica, replace(REQUEST, messages=(Message("user", "moon " * 60),))))
    assert isinstance(event, Failed)
    assert "the policy's context 60" in event.message
    last = asyncio.run(collected(replica, replace(REQUEST, sampling=Sampling(60, temperature=0.0))))[-1]
    assert isinstance(last, Delta)
    assert last.completion_tokens == 60 - len(replica._loaded.text.prompt("", REQUEST.messages, {})) < 40
    replica._loaded.engine.close()


@pytest.mark.case("B10: one prompt that uses up the memory")
def test_a_prompt_without_memory_is_a_sentence_and_the_engine_lives(
    tiny_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = replica_of(tiny_policy)

    def greedy(prompt_ids: object, cache_salt: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(replica._loaded.engine, "_prefill", greedy)
        failed = asyncio.run(collected(replica, REQUEST))[-1]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (503, "out_of_memory")
    assert "engine.max_model_len" in failed.message
    asyncio.run(replica.check_health())
    assert isinstance(asyncio.run(collected(replica, REQUEST))[-1], Delta)
    replica._loaded.engine.close()


def test_a_dead_engine_fails_the_health_check_and_its_requests(tiny_policy: str) -> None:
    replica = replica_of(tiny_policy)
    asyncio.run(replica.check_health())
    replica._loaded.engine._stop_ids = None  # type: ignore[assignment]  # the next step of its thread breaks on it
    events = asyncio.run(collected(replica, REQUEST))
    assert isinstance(events[-1], Failed)
    assert events[-1].status == 503
    with pytest.raises(RuntimeError, match="the engine died"):
        asyncio.run(replica.check_health())
    assert isinstance(asyncio.run(collected(replica, REQUEST))[-1], Failed)


def wait_until_idle(replica: Replica) -> None:
    deadline = time.monotonic() + 10
    while asyncio.run(replica.num_running()):
        assert time.monotonic() < deadline, "a request was not cancelled"
        time.sleep(0.01)
