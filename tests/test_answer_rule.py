import numpy as np
import pytest
import torch

from actors.generation.answer_rule import AnswerRule, next_tokens
from actors.generation.penalties import Penalties
from actors.generation.protocol import Sampling
from actors.generation.sampling import sample

CPU = torch.device("cpu")


def _penalized(sampling: Sampling, logits: list[float], prompt: list[int], answer: list[int]) -> list[float]:
    penalties = Penalties.of(sampling, prompt, len(logits), CPU)
    assert penalties is not None
    for token in answer:
        penalties.count(token)
    logits_V = torch.tensor(logits)
    penalties.apply_(logits_V)
    return logits_V.tolist()


def test_penalties_are_openai_s_and_transformers_own() -> None:
    logits = [2.0, -2.0, 1.0, 0.5, 3.0]
    prompt, answer = [0, 1], [2, 2, 4]
    assert _penalized(Sampling(frequency_penalty=0.5), logits, prompt, answer) == [2, -2, 0, 0.5, 2.5]
    assert _penalized(Sampling(presence_penalty=0.5), logits, prompt, answer) == [2, -2, 0.5, 0.5, 2.5]
    # Positive logits are divided and negative ones multiplied, those of the prompt too.
    assert _penalized(Sampling(repetition_penalty=2), logits, prompt, answer) == [1, -4, 0.5, 0.5, 1.5]
    assert _penalized(Sampling(logit_bias={3: 4.0, 1: -100.0}), logits, prompt, answer) == [2, -102, 1, 4.5, 3]
    # The bias comes first, then the factor, then what is subtracted.
    both = Sampling(repetition_penalty=2, frequency_penalty=1, presence_penalty=1, logit_bias={2: 3.0})
    assert _penalized(both, logits, prompt, answer)[2] == (1 + 3) / 2 - 2 - 1


def test_repetition_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits_1V = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    ids = [3, 4, 4, 30]
    expected_1V = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), logits_1V)
    found = _penalized(Sampling(repetition_penalty=1.3), logits_1V[0].tolist(), ids[:2], ids[2:])
    assert found == pytest.approx(expected_1V[0].tolist())


def test_rows_without_a_rule_of_their_own_cost_nothing_and_stay_as_they_are() -> None:
    assert Penalties.of(Sampling(top_k=3, min_p=0.1, logprobs=5), [1], 50, CPU) is None
    logits_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    plain = [Sampling(seed=i, temperature=t) for i, t in enumerate((1.0, 0.0, 0.7))]
    expected = sample(logits_BV, plain, [np.random.default_rng(s.seed) for s in plain])
    rules = [AnswerRule(s, [1, 2], 50, CPU) for s in plain]
    assert [token for token, _ in next_tokens(rules, logits_BV.clone())] == expected
    beside = [
        *(AnswerRule(s, [1, 2], 50, CPU) for s in plain[:2]),
        AnswerRule(Sampling(logit_bias={7: 50.0}), [], 50, CPU),
    ]
    assert [token for token, _ in next_tokens(beside, logits_BV.clone())] == [*expected[:2], 7]


def test_what_an_answer_has_is_penalized_more_and_more() -> None:
    logits_V = torch.tensor([3.0, 2.5, 2.0, 0.0])
    rule, answer = AnswerRule(Sampling(temperature=0, frequency_penalty=0.7, logprobs=1), [0], 4, CPU), []
    for _ in range(6):
        [(token, logprob)] = next_tokens([rule], logits_V[None].clone())
        assert token is not None
        assert logprob is not None
        assert logprob.logprob == pytest.approx(float(logits_V.log_softmax(-1)[token]))  # the raw one
        rule.accept(token)
        answer.append(token)
    assert answer == [0, 1, 0, 2, 1, 0]
