from typing import Any

import numpy as np
import pytest
import torch

from actors.generation.protocol import Sampling
from actors.generation.sampling import sample


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
    # Values that are 0 in float32.
    assert shares(Sampling(top_p=1e-300)) == [1, 0, 0, 0]
    assert shares(Sampling(temperature=1e-300)) == [1, 0, 0, 0]


def test_what_no_sampler_could_follow_is_refused() -> None:
    for bad in (
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 2.0},
        {"top_k": -1},
        {"max_tokens": 0},
        {"temperature": float("nan")},
    ):
        with pytest.raises(ValueError, match=r"out of range|at least 1"):
            Sampling(**bad)  # type: ignore[arg-type]


def test_min_p_leaves_out_what_is_much_less_likely() -> None:
    logits_BV = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    rngs = [np.random.default_rng(i) for i in range(2000)]

    def shares(sampling: Sampling) -> list[float]:
        counts = np.bincount(sample(logits_BV, [sampling] * 2000, rngs), minlength=4)
        return [float(c) for c in counts / 2000]

    assert shares(Sampling(min_p=0.5)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert shares(Sampling(min_p=0.2, top_k=3)) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.04)
    assert shares(Sampling(min_p=1)) == [1, 0, 0, 0]
    # At a temperature of 2 the shares are as their roots: 0.05 is a third of 0.5.
    assert shares(Sampling(min_p=0.31, temperature=2))[3] > 0.1


def test_a_row_s_token_does_not_depend_on_the_rules_beside_it() -> None:
    logits_BV = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    plain = Sampling(temperature=0.9)

    def first(others: list[Sampling]) -> list[int]:
        rngs = [np.random.default_rng(7) for _ in range(4)]
        return [sample(logits_BV, [plain, *others], rngs)[0] for _ in range(20)]

    assert first([plain] * 3) == first([Sampling(min_p=0.3), Sampling(top_k=4), Sampling(min_p=0.1, top_p=0.5)])


@pytest.mark.parametrize(
    "bad",
    [
        {"min_p": 1.5},
        {"frequency_penalty": -2.1},
        {"presence_penalty": float("nan")},
        {"repetition_penalty": 0.0},
        {"logprobs": 21},
        {"prompt_logprobs": -1},
        {"logit_bias": {7: 101.0}},
    ],
)
def test_every_bound_is_told_with_its_value(bad: dict[str, Any]) -> None:
    [(name, value)] = bad.items()
    shown = "logit_bias of token 7 101.0" if name == "logit_bias" else f"{name} {value}"
    with pytest.raises(ValueError, match=rf"^{shown} is out of range: it must be from -?[\d.]+ to [\d.]+$"):
        Sampling(**bad)
    with pytest.raises(ValueError, match="logit_bias names 1025 tokens: at most 1024 are allowed"):
        Sampling(logit_bias=dict.fromkeys(range(1025), 1.0))
