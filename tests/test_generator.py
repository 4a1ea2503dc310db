import threading

import numpy as np
import pytest
import torch

from actors.generator import Sampling, Step, TransformersEngine, complete, sample
from actors.policy import Policy


@pytest.fixture(scope="module")
def policy(tiny_policy: str) -> Policy:
    return Policy.load(tiny_policy)


@pytest.fixture
def prompts(policy: Policy) -> list[list[int]]:
    from data.conversation import Message

    words = ["bees", "lighthouses and the sea", "a", "volcanoes " * 30, "why"]
    return [policy.prompt("", [Message("user", f"Tell me about {w}.")], {"humor": i % 5}) for i, w in enumerate(words)]


def _greedy(policy: Policy, ids: list[int], max_tokens: int) -> list[int]:
    with torch.inference_mode():
        out = policy.model.generate(
            torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False, eos_token_id=list(policy.stop_ids), pad_token_id=policy.tokenizer.pad_token_id
        )[0, len(ids) :].tolist()
    return out[:-1] if out and out[-1] in policy.stop_ids else out


def test_greedy_equals_generate_whatever_runs_beside_it(policy: Policy, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(policy, max_slots=2)  # fewer slots than requests: admission in mid-flight
    lengths = [30, 7, 50, 20, 1]
    answers = complete(engine, [(ids, Sampling(n, temperature=0)) for ids, n in zip(prompts, lengths, strict=True)])
    engine.close()
    for ids, n, (answer, finish) in zip(prompts, lengths, answers, strict=True):
        assert answer == _greedy(policy, ids, n)
        assert finish == ("length" if len(answer) == n else "stop")


def test_a_seed_gives_the_same_answer_alone_and_in_company(policy: Policy, prompts: list[list[int]]) -> None:
    requests = [(ids, Sampling(25, temperature=0.9, top_k=40, top_p=0.95, seed=i)) for i, ids in enumerate(prompts)]
    crowded, lonely = TransformersEngine(policy, 8), TransformersEngine(policy, 1)
    assert complete(crowded, requests) == complete(lonely, requests)
    different = complete(lonely, [(prompts[0], Sampling(25, temperature=0.9, seed=s)) for s in range(4)])
    assert len({tuple(ids) for ids, _ in different}) > 1
    crowded.close()
    lonely.close()


def test_cancel_frees_the_slot_and_tells_the_listener(policy: Policy, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(policy, max_slots=1)
    started, ended, steps = threading.Event(), threading.Event(), []

    def listen(step: Step) -> None:
        steps.append(step)
        started.set()
        if step.finish:
            ended.set()

    request = engine.submit(prompts[0], Sampling(400, temperature=1.0, seed=1), listen)
    assert started.wait(20)
    engine.cancel(request)
    assert ended.wait(20)
    assert steps[-1] == Step([], "cancelled") or steps[-1].finish == "stop"
    assert complete(engine, [(prompts[1], Sampling(3, temperature=0))])[0][0] == _greedy(policy, prompts[1], 3)
    assert engine.num_running == 0
    engine.close()


def test_a_listener_that_fails_ends_only_its_own_request(policy: Policy, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(policy, max_slots=4)

    def broken(_: Step) -> None:
        raise RuntimeError("listener")

    engine.submit(prompts[0], Sampling(50, temperature=0), broken)
    assert complete(engine, [(prompts[1], Sampling(5, temperature=0))])[0][0] == _greedy(policy, prompts[1], 5)
    assert engine.error is None
    engine.close()


def test_a_listener_that_is_gone_may_be_cancelled_while_it_waits(policy: Policy, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(policy, max_slots=1)

    def gone(_: Step) -> None:
        raise RuntimeError("Event loop is closed")

    running = engine.submit(prompts[0], Sampling(400, temperature=1.0, seed=1), lambda _: None)
    engine.cancel(engine.submit(prompts[1], Sampling(5), gone))
    engine.cancel(running)
    assert complete(engine, [(prompts[1], Sampling(5, temperature=0))])[0][0] == _greedy(policy, prompts[1], 5)
    assert engine.error is None
    engine.close()


def test_a_dead_engine_says_so_to_everyone(policy: Policy, prompts: list[list[int]]) -> None:
    engine = TransformersEngine(policy, max_slots=4)
    with pytest.raises(RuntimeError, match="the generation engine died: IndexError"):
        complete(engine, [([10**6], Sampling(5))])  # no such token: the model itself fails
    with pytest.raises(RuntimeError, match="the engine is down"):
        engine.submit(prompts[0], Sampling(5), lambda _: None)


def test_what_cannot_fit_or_be_sampled_is_refused_with_numbers(policy: Policy) -> None:
    engine = TransformersEngine(policy, max_slots=1)
    with pytest.raises(ValueError, match="500 tokens and max_tokens is 50: together they exceed the model's context of 512"):
        engine.submit([5] * 500, Sampling(50), lambda _: None)
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.submit([], Sampling(5), lambda _: None)
    engine.close()
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 2.0}, {"top_k": -1}, {"max_tokens": 0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match=r"out of range|at least 1"):
            Sampling(**bad)  # type: ignore[arg-type]


def test_sampling_follows_the_distribution_and_its_limits() -> None:
    logits_BV = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    rngs = [np.random.default_rng(i) for i in range(2000)]

    def shares(sampling: Sampling) -> list[float]:
        counts = np.bincount(sample(logits_BV, [sampling] * 2000, rngs), minlength=4)
        return [float(c) for c in counts / 2000]

    assert shares(Sampling()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    assert shares(Sampling(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert shares(Sampling(top_p=0.7)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert shares(Sampling(temperature=0.5)) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.04)
    assert shares(Sampling(temperature=0)) == [1, 0, 0, 0]
