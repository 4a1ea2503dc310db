"""A transformers engine that is closed, dies or runs out of memory: whoever waits is told, and the others go on."""

from collections.abc import Sequence

import pytest
import torch
from support.engine_listener import Recorder
from support.engines import prompts_of

from actors.generation.protocol import Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.policy import Policy


@pytest.fixture(scope="module")
def policy(wide_policy: str) -> Policy:
    return Policy.load(wide_policy)


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    return prompts_of(policy)


def test_a_closed_engine_tells_those_who_wait_and_takes_no_more(policy: Policy, prompts: list[list[int]]) -> None:
    engine, recorder = TransformersEngine(policy, max_num_seqs=1), [Recorder(), Recorder()]
    for listener in recorder:
        engine.submit(prompts[0], Sampling(400, temperature=1.0, seed=1), listener)
    engine.close()
    assert [h.steps[-1].finish for h in recorder] == ["cancelled", "cancelled"]
    with pytest.raises(RuntimeError, match="the engine is down: closed"):
        engine.submit(prompts[0], Sampling(5), lambda _: None)


def _broken(policy: Policy) -> TransformersEngine:
    """An engine whose model fails."""

    def fails(prompt_ids: Sequence[int], cache_salt: str) -> object:
        raise IndexError("index out of range in self")

    engine = TransformersEngine(policy, max_num_seqs=4)
    engine._prefill = fails  # type: ignore[assignment]
    return engine


def test_a_dead_engine_says_so_to_everyone(policy: Policy, prompts: list[list[int]]) -> None:
    engine = _broken(policy)
    with pytest.raises(RuntimeError, match="the generation engine died: IndexError"):
        complete(engine, [(prompts[0], Sampling(5))])
    with pytest.raises(RuntimeError, match="the engine is down"):
        engine.submit(prompts[0], Sampling(5), lambda _: None)


def test_those_who_were_to_start_with_the_one_that_killed_it_are_told_too(
    policy: Policy, prompts: list[list[int]]
) -> None:
    engine, recorder = _broken(policy), [Recorder() for _ in range(3)]
    engine.submit_all([(prompts[0], Sampling(5), listener) for listener in recorder])
    assert all(listener.ended.wait(20) for listener in recorder)
    assert [listener.steps[-1].finish for listener in recorder] == ["error"] * 3


@pytest.mark.case("B10: one prompt that uses up the memory")
def test_a_prompt_without_memory_ends_alone(policy: Policy, prompts: list[list[int]]) -> None:
    engine, recorder = TransformersEngine(policy, max_num_seqs=4), [Recorder() for _ in range(3)]
    [expected, _] = complete(engine, [(prompts[0], Sampling(5, temperature=0.0))])[0]
    prefill = engine._prefill

    def greedy(prompt_ids: Sequence[int], cache_salt: str) -> object:
        if len(prompt_ids) == len(prompts[3]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prefill(prompt_ids, cache_salt)

    engine._prefill = greedy  # type: ignore[assignment]
    asked = [(prompts[i], Sampling(5, temperature=0.0), recorder[n]) for n, i in enumerate((0, 3, 0))]
    engine.submit_all(asked)
    assert all(listener.ended.wait(20) for listener in recorder)
    assert [listener.steps[-1].finish for listener in recorder] == ["length", "memory", "length"]
    assert [[i for step in recorder[n].steps for i in step.token_ids] for n in (0, 1, 2)] == [expected, [], expected]
    assert (engine.error, engine.load.running) == (None, 0)
    with pytest.raises(RuntimeError, match=f"no memory for a prompt of {len(prompts[3])} tokens: lower max_num_seqs"):
        complete(engine, [(prompts[3], Sampling(5)), (prompts[0], Sampling(5))])
    engine.close()
