"""The engine contract (`actors.generation.protocol`) holds for every engine; vLLM: `make test-vllm`."""

import time
from collections.abc import Iterator

import pytest
import torch
from support.engine_listener import Recorder
from support.engines import KINDS, MAX_NUM_SEQS, prompts_of, running

from actors.generation.protocol import Engine, GenerationStep, Grammar, Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.policy import Policy
from data.conversation import Message
from data.errors import UserError


@pytest.fixture(scope="module")
def policy(wide_policy: str) -> Policy:
    return Policy.load(wide_policy)


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, wide_policy: str) -> Iterator[Engine]:
    with running(request.param, wide_policy) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    return prompts_of(policy)


def _greedy(policy: Policy, ids: list[int], max_tokens: int) -> list[int]:
    with torch.inference_mode():
        out = policy.model.generate(
            torch.tensor([ids]),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(policy.stop_ids),
            pad_token_id=policy.tokenizer.pad_token_id,
        )[0, len(ids) :].tolist()
    return out[:-1] if out and out[-1] in policy.stop_ids else out


def _idle(engine: Engine) -> None:
    deadline = time.monotonic() + 20
    while engine.load.running or engine.load.waiting:
        assert time.monotonic() < deadline, f"a place was not freed: {engine.load}"
        time.sleep(0.005)


def test_greedy_equals_generate_whatever_runs_beside_it(
    engine: Engine, policy: Policy, prompts: list[list[int]]
) -> None:
    lengths = [30, 7, 50, 20, 1, 12]  # more requests than places: admission in mid-flight
    requested = [*prompts, prompts[0]]
    answers = complete(engine, [(ids, Sampling(n, temperature=0)) for ids, n in zip(requested, lengths, strict=True)])
    for ids, n, (answer, finish) in zip(requested, lengths, answers, strict=True):
        assert answer == _greedy(policy, ids, n)
        assert finish == ("length" if len(answer) == n else "stop")


def test_every_request_samples_by_its_own_rule(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    mixed = [
        (prompts[0], Sampling(12, temperature=0)),
        (prompts[1], Sampling(12, temperature=1.0, seed=1)),
        (prompts[2], Sampling(12, top_k=1, seed=2)),
    ]
    (greedy, _), _, (narrow, _) = complete(engine, mixed)
    assert greedy == _greedy(policy, prompts[0], 12)
    assert narrow == _greedy(policy, prompts[2], 12)


def test_a_seed_gives_the_same_answer_alone_and_in_company(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [(ids, Sampling(25, temperature=0.9, top_k=40, top_p=0.95, seed=i)) for i, ids in enumerate(prompts)]
    assert complete(engine, requests) == [complete(engine, [request])[0] for request in requests]
    different = complete(engine, [(prompts[0], Sampling(25, temperature=0.9, seed=s)) for s in range(4)])
    assert len({tuple(ids) for ids, _ in different}) > 1


def test_ids_come_one_by_one_and_an_answer_of_one_token_may_end(engine: Engine, prompts: list[list[int]]) -> None:
    recorder = Recorder()
    engine.submit(prompts[0], Sampling(20, temperature=0), recorder)
    assert recorder.ended.wait(30)
    assert [s.finish for s in recorder.steps[:-1]] == [None] * (len(recorder.steps) - 1)
    assert len(recorder.steps) >= sum(len(s.token_ids) for s in recorder.steps)
    assert len(complete(engine, [(prompts[0], Sampling(1, temperature=0))])[0][0]) <= 1


def test_a_request_joins_while_another_runs_and_may_end_before_it(engine: Engine, prompts: list[list[int]]) -> None:
    long, short = Recorder(), Recorder()
    engine.submit(prompts[0], Sampling(380, temperature=1.0, seed=5), long)
    assert long.started.wait(30)
    engine.submit(prompts[1], Sampling(2, temperature=0), short)
    assert short.ended.wait(30)
    assert not long.ended.is_set()
    assert long.ended.wait(60)


def test_cancel_frees_the_slot_within_one_step(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    recorder = [Recorder() for _ in range(MAX_NUM_SEQS)]
    numbers = [engine.submit(prompts[0], Sampling(400, temperature=1.0, seed=i), h) for i, h in enumerate(recorder)]
    assert all(h.started.wait(30) for h in recorder)
    before = [len(h.steps) for h in recorder]
    for number in numbers:
        engine.cancel(number)
    assert all(h.ended.wait(30) for h in recorder)
    assert all(h.steps[-1] == GenerationStep([], "cancelled") or h.steps[-1].finish == "stop" for h in recorder)
    # The step that ran when the cancel came, those that ran during the four cancels, and the last one.
    assert all(len(h.steps) - n <= 2 + MAX_NUM_SEQS for h, n in zip(recorder, before, strict=True))
    assert complete(engine, [(prompts[1], Sampling(3, temperature=0))])[0][0] == _greedy(policy, prompts[1], 3)
    assert engine.load.running == 0


def test_those_beside_a_cancelled_request_go_on_as_if_alone(
    engine: Engine, policy: Policy, prompts: list[list[int]]
) -> None:
    recorder = [Recorder() for _ in range(MAX_NUM_SEQS)]
    numbers = engine.submit_all(
        [(prompts[i], Sampling(60, temperature=0), listener) for i, listener in enumerate(recorder)]
    )
    assert recorder[0].started.wait(20)
    engine.cancel(numbers[0])  # the first row of the cache: the others move
    assert all(listener.ended.wait(20) for listener in recorder)
    assert recorder[0].steps[-1].finish in ("cancelled", "stop", "length")
    for ids, listener in zip(prompts[1:MAX_NUM_SEQS], recorder[1:], strict=True):
        assert [i for step in listener.steps for i in step.token_ids] == _greedy(policy, ids, 60)
    assert engine.error is None


def test_a_request_that_waits_may_be_cancelled(engine: Engine, prompts: list[list[int]]) -> None:
    running = [
        engine.submit(prompts[0], Sampling(400, temperature=1.0, seed=i), Recorder()) for i in range(MAX_NUM_SEQS)
    ]
    waiting = Recorder()
    engine.cancel(engine.submit(prompts[1], Sampling(5), waiting))
    assert waiting.ended.wait(30)
    assert waiting.steps[-1] == GenerationStep([], "cancelled")
    for number in running:
        engine.cancel(number)
    _idle(engine)


def test_a_listener_that_fails_ends_only_its_own_request(
    engine: Engine, policy: Policy, prompts: list[list[int]]
) -> None:
    def broken(_: GenerationStep) -> None:
        raise RuntimeError("Event loop is closed")

    engine.submit(prompts[0], Sampling(300, temperature=1.0, seed=1), broken)
    engine.cancel(engine.submit(prompts[1], Sampling(5), broken))
    assert complete(engine, [(prompts[1], Sampling(5, temperature=0))])[0][0] == _greedy(policy, prompts[1], 5)
    assert engine.error is None
    _idle(engine)


def test_prompts_that_begin_alike_are_prefilled_once(engine: Engine, policy: Policy) -> None:
    question = [Message("user", "Tell me about the lighthouse at the end of the bay and about its keeper. " * 9)]
    prompts = [policy.prompt("", question, {"humor": humor}) for humor in range(5)]
    assert len(prompts[0]) > 200
    before = engine.load
    answers = complete(engine, [(ids, Sampling(8, temperature=0)) for ids in prompts])
    prefilled = engine.load.prefilled_tokens - before.prefilled_tokens
    assert prefilled <= 1.5 * len(prompts[0])
    assert prefilled + engine.load.reused_tokens - before.reused_tokens == sum(map(len, prompts))
    assert [ids for ids, _ in answers] == [_greedy(policy, ids, 8) for ids in prompts]


@pytest.mark.case("B13: teams share no prefixes in any engine")
def test_prompts_of_different_salts_share_nothing(engine: Engine, policy: Policy) -> None:
    prompt = policy.prompt("", [Message("user", "What does the keeper of the lighthouse see at night? " * 12)], {})

    def reused(salt: str) -> int:
        before = engine.load.reused_tokens
        complete(engine, [(prompt, Sampling(2, temperature=0, cache_salt=salt))])
        return engine.load.reused_tokens - before

    first, again, other, none, other_again = map(reused, ("games", "games", "school", "", "school"))
    # The beginning of every prompt may be in the cache already, but only where no salt is set.
    assert (first, other) == (0, 0)
    assert none < again == other_again


def test_what_cannot_fit_is_refused_with_numbers(engine: Engine) -> None:
    with pytest.raises(
        ValueError, match="500 tokens and max_tokens is 50: together they exceed the model's context of 512"
    ):
        engine.submit([5] * 500, Sampling(50), lambda _: None)
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.submit([], Sampling(5), lambda _: None)
    with pytest.raises(ValueError, match="512 tokens: it must be shorter than the model's context of 512"):
        engine.submit([5] * 512, Sampling(0, prompt_logprobs=0), lambda _: None)


def test_tokens_that_the_vocabulary_lacks_are_refused(engine: Engine, prompts: list[list[int]]) -> None:
    last = engine.num_tokens - 1
    for wrong in (last + 1, -1, 10**30):
        with pytest.raises(ValueError, match=f"the prompt has token {wrong}: the vocabulary ends at {last}"):
            engine.submit([5, wrong], Sampling(5), lambda _: None)
        with pytest.raises(ValueError, match=f"logit_bias has token {wrong}: the vocabulary ends at {last}"):
            engine.submit(prompts[0], Sampling(5, logit_bias={wrong: 1.0}), lambda _: None)
    assert complete(engine, [([5], Sampling(1, temperature=0))])


def test_an_answer_may_reach_exactly_the_end_of_the_context(engine: Engine) -> None:
    asked = [([5] * 510, Sampling(2, seed=1)), ([5] * 511, Sampling(1, seed=1)), ([5] * 500, Sampling(12, seed=1))]
    for (ids, finish), (_, sampling) in zip(complete(engine, asked), asked, strict=True):
        assert (finish == "stop" and len(ids) < sampling.max_tokens) or len(ids) == sampling.max_tokens


def test_an_answer_may_be_empty(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    end = min(policy.stop_ids)
    assert complete(engine, [(prompts[0], Sampling(9, temperature=0, logit_bias={end: 100.0}))]) == [([], "stop")]


def test_a_benchmark_s_answer_goes_on_behind_its_end(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    end = min(policy.stop_ids)
    asked = Sampling(9, temperature=0, logit_bias={end: 100.0}, ignore_eos=True)
    assert complete(engine, [(prompts[0], asked)]) == [([end] * 9, "length")]
    with pytest.raises(UserError, match="ignore_eos"):
        Sampling(9, grammar=Grammar("json_object"), ignore_eos=True)


def test_hundreds_of_requests_leave_nothing_behind(engine: Engine, prompts: list[list[int]]) -> None:
    before = engine.load.generated_tokens
    answers = complete(engine, [(prompts[i % 5], Sampling(1 + i % 7, temperature=1.0, seed=i)) for i in range(300)])
    assert engine.load.generated_tokens - before == sum(len(ids) for ids, _ in answers)
    assert (engine.load.running, engine.load.waiting) == (0, 0)
    assert engine.error is None


@pytest.mark.case("B10: a context that is bounded below the model's")
def test_a_context_can_be_shorter_than_the_model_s_and_never_longer(policy: Policy) -> None:
    short, long = (TransformersEngine(policy, max_num_seqs=1, max_context=n) for n in (20, 10**9))
    assert (short.context, long.context) == (20, policy.max_tokens)
    with pytest.raises(ValueError, match="exceed the model's context of 20"):
        short.submit([5] * 16, Sampling(5), lambda _: None)
    short.submit([5] * 15, Sampling(5), lambda _: None)
    for engine in (short, long):
        engine.close()


def test_penalties_bias_and_min_p_are_each_row_s_own(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    plain = _greedy(policy, prompts[0], 20)
    banned = Sampling(20, temperature=0, logit_bias={plain[0]: -100.0})
    requests = [
        (prompts[0], Sampling(20, temperature=0)),
        (prompts[0], banned),
        (prompts[0], Sampling(20, seed=3, min_p=1.0)),
        (prompts[0], Sampling(20, temperature=0, frequency_penalty=2.0, presence_penalty=2.0)),
        (prompts[0], Sampling(20, temperature=0, repetition_penalty=50.0)),
    ]
    found = [ids for ids, _ in complete(engine, requests)]
    assert found[0] == found[2] == plain
    assert plain[0] not in found[1]
    assert len(set(found[3])) > len(set(plain)) or len(set(plain)) == len(plain)
    assert not {*found[4]} & {*prompts[0]}
    assert found == [complete(engine, [request])[0][0] for request in requests]
