"""Both engines report the log-probabilities of answers and prompts; vLLM: `make test-vllm`."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from support.engine_listener import Recorder
from support.engines import KINDS, prompts_of, running, steps_of

from actors.generation.logprobs import of_tokens, prefill_with_logprobs
from actors.generation.protocol import Engine, Sampling, TokenLogprob, complete
from actors.modeling.policy import Policy

TOLERANCE = 1e-4


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


@torch.inference_mode()
def _expected(policy: Policy, ids: Sequence[int]) -> torch.Tensor:
    """Transformers' own log-probabilities [T, V] of what follows each token."""
    return policy.model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().log_softmax(-1)


def _check(found: TokenLogprob, expected_V: torch.Tensor, token: int, num_top: int) -> None:
    assert found.logprob == pytest.approx(float(expected_V[token]), abs=TOLERANCE)
    assert len(found.top) == num_top
    if num_top:
        values = [p for _, p in found.top]
        assert values == pytest.approx(expected_V.topk(num_top).values.tolist(), abs=TOLERANCE)
        assert values == sorted(values, reverse=True)
        assert [float(expected_V[i]) for i, _ in found.top] == pytest.approx(values, abs=TOLERANCE)


def test_every_token_of_an_answer_has_its_logprob(engine: Engine, policy: Policy, prompts: list[list[int]]) -> None:
    """Those of the raw logits, whatever temperature, penalties and limits chose it."""
    rules = [
        Sampling(12, temperature=0, logprobs=0),
        Sampling(12, temperature=1.7, seed=3, top_k=5, logprobs=20),
        Sampling(12, seed=4, frequency_penalty=2, repetition_penalty=1.5, logit_bias={9: 5.0}, logprobs=3),
    ]
    for ids, sampling in zip(prompts, rules, strict=False):
        steps = steps_of(engine, ids, sampling)
        answer = [i for step in steps for i in step.token_ids]
        found = [logprob for step in steps for logprob in step.logprobs or []]
        assert len(found) == len(answer) > 0
        expected_TV = _expected(policy, [*ids, *answer])
        for place, (token, logprob) in enumerate(zip(answer, found, strict=True)):
            _check(logprob, expected_TV[len(ids) - 1 + place], token, sampling.logprobs or 0)


def test_logprobs_change_no_answer_and_come_only_where_asked_for(engine: Engine, prompts: list[list[int]]) -> None:
    plain = steps_of(engine, prompts[0], Sampling(10, seed=1))
    reported = steps_of(engine, prompts[0], Sampling(10, seed=1, logprobs=2, prompt_logprobs=0))
    assert [step.token_ids for step in plain] == [step.token_ids for step in reported]
    assert all(step.logprobs is None and step.prompt_logprobs is None for step in plain)
    assert [step.prompt_logprobs is not None for step in reported] == [True] + [False] * (len(reported) - 1)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_prompt_logprobs_equal_transformers_own(
    engine: Engine,
    policy: Policy,
    prompts: list[list[int]],
    max_tokens: int,
) -> None:
    """Also where the prefix cache has the prompt, or its beginning, and beside requests that run."""
    complete(engine, [(ids, Sampling(2, temperature=0)) for ids in prompts])
    beside = Recorder()
    other = engine.submit(prompts[0], Sampling(300, seed=1), beside)
    for ids in (*prompts, [*prompts[0], 9, 10], [7], [7] * (512 - max(1, max_tokens))):
        steps = steps_of(engine, ids, Sampling(max_tokens, temperature=0, prompt_logprobs=2))
        [found] = [step.prompt_logprobs for step in steps if step.prompt_logprobs is not None]
        assert len(found) == len(ids)
        assert found[0] is None
        expected_TV = _expected(policy, ids)
        for place, logprob in enumerate(found[1:]):
            assert logprob is not None
            _check(logprob, expected_TV[place], ids[place + 1], 2)
        assert sum(len(step.token_ids) for step in steps) <= max_tokens
        assert steps[-1].finish == "length" or max_tokens
    engine.cancel(other)
    assert beside.ended.wait(30)


def test_a_scored_prompt_fills_the_prefix_cache_for_others(engine: Engine, policy: Policy) -> None:
    prompt = [11, 12, 13] * 60
    steps_of(engine, prompt, Sampling(1, temperature=0, prompt_logprobs=0))
    before = engine.load
    again, _ = complete(engine, [([*prompt, 14], Sampling(4, temperature=0))])[0]
    assert engine.load.reused_tokens - before.reused_tokens > 100
    assert again == complete(engine, [([*prompt, 14], Sampling(4, temperature=0, cache_salt="fresh"))])[0][0]


@torch.inference_mode()
def test_a_long_prompt_s_logits_exist_in_chunks(policy: Policy) -> None:
    ids, vocabulary = [5 + i % 90 for i in range(200)], policy.model.config.vocab_size
    whole_cache, whole_1V, whole = prefill_with_logprobs(policy.model, ids, 3, vocabulary)
    widths: list[int] = []
    head = policy.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _input, output: widths.append(output.shape[1]))
    cache, last_1V, found = prefill_with_logprobs(policy.model, ids, 3, vocabulary, chunk_logits=7 * vocabulary)
    hook.remove()
    assert max(widths) == 7
    assert sum(widths) == len(ids)
    assert cache.get_seq_length() == whole_cache.get_seq_length() == len(ids)
    torch.testing.assert_close(last_1V, whole_1V, atol=1e-5, rtol=0)
    for one, other in zip(found[1:], whole[1:], strict=True):
        assert one is not None
        assert other is not None
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]


def test_what_a_grammar_bans_is_no_alternative() -> None:
    logits_NV = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    [found] = of_tokens(logits_NV, [2], 4)
    assert found.logprob == pytest.approx(-0.6931, abs=1e-4)
    assert {i for i, _ in found.top} == {0, 2}


def test_the_token_that_ends_an_answer_has_its_logprob_too(
    engine: Engine, policy: Policy, prompts: list[list[int]]
) -> None:
    end = min(policy.stop_ids)
    [step] = steps_of(engine, prompts[0], Sampling(9, temperature=0, logit_bias={end: 100.0}, logprobs=1))
    assert (step.token_ids, step.finish, step.logprobs, step.end_id) == ([], "stop", [], end)
    assert step.end_logprob is not None
    _check(step.end_logprob, _expected(policy, prompts[0])[-1], end, 1)
    [plain] = steps_of(engine, prompts[0], Sampling(9, temperature=0, logit_bias={end: 100.0}))
    assert (plain.logprobs, plain.end_id, plain.end_logprob) == (None, end, None)
