"""Ridge-initialized heads: what they fit, how they carry a mean without a bias, and where they would help nothing."""

import torch

from actors.modeling.ridge_init import RidgeHeads


def features(seed: int, num: int = 4000, width: int = 12) -> torch.Tensor:
    """Features with one nearly constant direction, as a normalized hidden state has."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    x = torch.randn(num, width, generator=generator) @ mixing
    constant = torch.randn(width, generator=generator)
    constant = constant / constant.norm()
    return x - torch.outer(x @ constant - 3, constant)  # x . constant == 3


def fitted(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, penalty: float = 1e-6) -> torch.Tensor:
    ridge_init = RidgeHeads(x.shape[1], y.shape[1])
    for start in range(0, len(x), 1000):
        part = slice(start, start + 1000)
        ridge_init.add(x[part], y[part], weights[part])
    return ridge_init.weights(penalty)


def test_a_linear_rule_with_an_offset_is_found_without_a_bias() -> None:
    x = features(0)
    slope = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    y = x @ slope.T + torch.tensor([2.5, -1.0])
    heads = fitted(x, y, torch.ones_like(y))
    torch.testing.assert_close(x @ heads.T, y, atol=1e-2, rtol=1e-2)


def test_only_labels_that_count_are_fitted() -> None:
    x = features(2)
    y = torch.stack([x[:, 0] + 1, torch.full((len(x),), 7.0)], 1)
    weights = torch.ones_like(y)
    y[::2, 0], weights[::2, 0] = 1e6, 0  # no label there
    weights[:, 1] = 0
    heads = fitted(x, y, weights)
    torch.testing.assert_close((x @ heads.T)[1::2, 0], y[1::2, 0], atol=1e-2, rtol=1e-2)
    assert heads[1].abs().sum() == 0, "an attribute that nobody rated keeps a head of zeros"


def test_a_heavier_penalty_draws_scores_to_the_mean() -> None:
    x = features(3)
    y = (x[:, :1] + torch.randn(len(x), 1, generator=torch.Generator().manual_seed(4))) + 2
    spreads = [(x @ fitted(x, y, torch.ones_like(y), penalty).T).std().item() for penalty in (0.01, 1.0, 10.0)]
    assert spreads[0] > spreads[1] > spreads[2]
    scores = x @ fitted(x, y, torch.ones_like(y), 10.0).T
    torch.testing.assert_close(scores.mean(), y.mean(), atol=0.05, rtol=0.05)
