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
