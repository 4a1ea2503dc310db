"""The transformers engine in too little memory: requests wait, what never fits is refused, no answer is lost."""

import itertools
from typing import Any

import pytest
import torch
from support.engine_listener import Recorder

from actors.generation.kv_budget import bytes_per_token
from actors.generation.kv_cache import FREE_COLUMNS
from actors.generation.protocol import Engine, Grammar, Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.policy import Policy
from data.conversation import Message


@pytest.fixture(scope="module")
def policy(wide_policy: str) -> Policy:
    return Policy.load(wide_policy)


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    words = ["bees", "lighthouses and the sea", "a", "volcanoes " * 30, "why"]
    return [policy.prompt("", [Message("user", f"Tell me about {w}.")], {"humor": i % 5}) for i, w in enumerate(words)]


def _greedy_answers(engine: Engine, prompts: list[list[int]]) -> list[tuple[list[int], str]]:
    return complete(engine, [(ids, Sampling(20, temperature=0.0)) for ids in prompts * 3])


@pytest.mark.case("B10: more requests than memory")
def test_requests_wait_for_memory_and_what_can_never_fit_is_refused(policy: Policy, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(policy, max_num_seqs=8)
    expected = _greedy_answers(engine, prompts)
    engine.close()
    longest = max(map(len, prompts))
    token = bytes_per_token(policy.model)
    cells = 2 * (longest + 20 + FREE_COLUMNS)  # two of the longest beside each other
    bounded = TransformersEngine(policy, max_num_seqs=8, kv_cache_gib=cells * token / 2**30 + 1e-9)
    most = _most_cells(bounded)
    assert _greedy_answers(bounded, prompts) == expected
    assert max(most) <= cells
    assert (bounded.load.running, bounded.load.waiting, bounded.error) == (0, 0, None)
    bounded.close()
    small = TransformersEngine(policy, max_num_seqs=8, kv_cache_gib=(100 + FREE_COLUMNS) * token / 2**30 + 1e-9)
    with pytest.raises(ValueError, match=r"has 90 tokens and max_tokens is 11: .* GiB of KV cache \(kv_cache_gib\)"):
        small.submit([5] * 90, Sampling(11), lambda _: None)
    assert len(complete(small, [([5] * 90, Sampling(10))])) == 1
    small.close()
    with pytest.raises(ValueError, match=r"that is no room for one answer; raise kv_cache_gib"):
        TransformersEngine(policy, kv_cache_gib=1e-6)


def _most_cells(engine: TransformersEngine) -> list[int]:
    """What the cache holds after each join, as it grows."""
    held, join = [0], engine._kv_cache.join

    def spy(*arguments: Any) -> None:
        join(*arguments)
        keys = engine._kv_cache.layers[0].keys
        held.append(keys.shape[0] * keys.shape[2])

    engine._kv_cache.join = spy  # type: ignore[method-assign]
    return held


@pytest.mark.case("B10: memory that runs out while answers are written")
@pytest.mark.parametrize("place", ["join", "begin_step"])
def test_no_answer_is_lost_if_memory_runs_out_while_it_is_written(
    place: str, policy: Policy, prompts: list[list[int]]
) -> None:
    engine = TransformersEngine(policy, max_num_seqs=8)
    expected = _greedy_answers(engine, prompts)
    work, calls = getattr(engine._kv_cache, place), itertools.count(1)

    def greedy(*arguments: Any) -> object:
        if next(calls) in (6, 11):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*arguments)

    setattr(engine._kv_cache, place, greedy)
    assert _greedy_answers(engine, prompts) == expected
    assert (engine.load.running, engine.load.waiting, engine.error) == (0, 0, None)
    assert engine._kv_cache.max_cells is not None
    engine.close()


@pytest.mark.case("B10: memory that is never enough")
def test_an_engine_without_any_memory_left_ends_requests_and_lives(policy: Policy, prompts: list[list[int]]) -> None:
    engine, recorder = TransformersEngine(policy, max_num_seqs=4), [Recorder() for _ in range(6)]

    def never(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine._kv_cache.join = never  # type: ignore[method-assign]
    engine.submit_all([(prompts[0], Sampling(5), listener) for listener in recorder])
    assert all(listener.ended.wait(20) for listener in recorder)
    assert [listener.steps[-1].finish for listener in recorder] == ["memory"] * 6
    assert (engine.error, engine.load.running, engine.load.waiting) == (None, 0, 0)
    engine.close()


def test_an_answer_goes_on_by_its_own_rule_after_memory_ran_out(policy: Policy, prompts: list[list[int]]) -> None:
    """Its grammar, its penalties and its random numbers; the prompt's log-probabilities come once."""
    rules = [
        Sampling(24, seed=1, grammar=Grammar("regex", "[ab]{40}"), logprobs=1),
        Sampling(24, temperature=0, frequency_penalty=1.5, repetition_penalty=1.2),
        Sampling(24, seed=3, min_p=0.01, prompt_logprobs=1, logprobs=0),
    ]

    def answers(fails_at: int | None) -> list[Recorder]:
        engine, recorder = TransformersEngine(policy, max_num_seqs=8), [Recorder() for _ in rules]
        work, calls = engine._kv_cache.begin_step, itertools.count(1)

        def begin_step() -> object:
            if next(calls) == fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work()

        engine._kv_cache.begin_step = begin_step  # type: ignore[method-assign,assignment]
        engine.submit_all(list(zip(prompts, rules, recorder, strict=False)))
        assert all(listener.ended.wait(30) for listener in recorder)
        engine.close()
        return recorder

    for whole, broken in zip(answers(None), answers(9), strict=True):
        assert [step.token_ids for step in whole.steps] == [step.token_ids for step in broken.steps]
        counts = [[len(step.logprobs or []), step.prompt_logprobs is not None] for step in whole.steps]
        assert counts == [[len(step.logprobs or []), step.prompt_logprobs is not None] for step in broken.steps]
