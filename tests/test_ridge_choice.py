"""Ridge heads equal a plain computation in both forms; groups stay whole; what rates best is chosen."""

import numpy as np
import pytest
import torch

from actors.modeling.layer_heads import Block, LayerHeads
from actors.modeling.ridge_choice import PENALTIES, FittedHeads, Labelled, candidates, fit_heads, group_folds
from actors.modeling.ridge_solver import CrossValidation, solved

WIDTH = 8
HEADS = LayerHeads(tuple(Block(layer, reading) for layer in (2, 4) for reading in ("end", "mean")), 6)  # type: ignore[arg-type]


def plain(x: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Slope and intercept by the textbook: the intercept is a column without penalty."""
    x1 = np.column_stack([x, np.ones(len(x))])
    ridge = penalty * x.shape[1] * weight.sum() * np.diag([*np.ones(x.shape[1]), 0.0])
    found = np.linalg.solve((x1 * weight[:, None]).T @ x1 + ridge, (x1 * weight[:, None]).T @ y)
    return found[:-1], found[-1]


def drawn(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very unequal sizes, and two attributes: one in block 4/mean, one in block 2/end."""
    generator = torch.Generator().manual_seed(seed)
    x_NF = torch.randn(num, 4 * WIDTH, generator=generator)
    noise_N2 = 0.3 * torch.randn(num, 2, generator=generator)
    y_N2 = torch.stack([x_NF[:, 3 * WIDTH] + 2, x_NF[:, 1] - x_NF[:, 2]], 1) + noise_N2
    sizes_F = 10.0 ** torch.linspace(-2, 3, 4 * WIDTH)
    return x_NF * sizes_F + sizes_F, y_N2


@pytest.mark.parametrize("num", [20, 200])
def test_slopes_and_intercepts_are_the_textbooks(num: int) -> None:
    """20 examples of 32 features take the dual form, 200 the other."""
    x_NF, y_NA = (t.double() for t in drawn(num))
    x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    weight_N = torch.linspace(0.5, 2, num, dtype=torch.float64)
    for penalty, (slope_FA, intercept_A) in zip((0.01, 1.0), solved(x_NF, y_NA, weight_N, (0.01, 1.0)), strict=True):
        for a in range(2):
            slope_F, intercept = plain(x_NF.numpy(), y_NA[:, a].numpy(), weight_N.numpy(), penalty)
            np.testing.assert_allclose(slope_FA[:, a], slope_F, atol=1e-9)
            assert float(intercept_A[a]) == pytest.approx(intercept, abs=1e-9)


@pytest.mark.parametrize("num", [25, 200])
def test_errors_are_those_of_fits_that_did_not_see_the_fold(num: int) -> None:
    x_NF, y_NA = drawn(num)
    x_NF, y_NA = (x_NF - x_NF.mean(0)) / x_NF.std(0), y_NA.double()
    weight_N, fold_N = torch.linspace(0.5, 2, num, dtype=torch.float64), torch.arange(num) % 3
    found = CrossValidation(x_NF, y_NA, weight_N, fold_N, WIDTH).errors([1, 3], [0.1])
    columns = [*range(WIDTH, 2 * WIDTH), *range(3 * WIDTH, 4 * WIDTH)]
    x, y, weight = x_NF[:, columns].double().numpy(), y_NA.numpy(), weight_N.numpy()
    total = np.zeros(2)
    for fold in range(3):
        held = (fold_N == fold).numpy()
        for a in range(2):
            slope, intercept = plain(x[~held], y[~held, a], weight[~held], 0.1)
            total[a] += weight[held] @ (x[held] @ slope + intercept - y[held, a]) ** 2
    np.testing.assert_allclose(found[0], total / weight.sum(), rtol=1e-4)


def fitted(x_NF: torch.Tensor, y_NA: torch.Tensor, weights_NA: torch.Tensor, chooses: bool = True) -> FittedHeads:
    folds_N = torch.from_numpy(group_folds([str(i // 4) for i in range(len(x_NF))], 0))
    return fit_heads(Labelled(x_NF, y_NA, weights_NA, folds_N), HEADS, chooses)


def scores(found: FittedHeads, x_NF: torch.Tensor) -> torch.Tensor:
    columns = [HEADS.blocks.index(b) * WIDTH + i for b in found.heads.blocks for i in range(WIDTH)]
    return torch.cat([x_NF[:, columns], torch.ones(len(x_NF), 1)], 1) @ found.weights_AF.T


def test_each_attribute_reads_the_block_that_rates_it_best() -> None:
    x_NF, y_NA = drawn(240)
    found = fitted(x_NF, y_NA, torch.ones_like(y_NA))
    assert [fit.blocks for fit in found.fits] == [("4/mean",), ("2/end",)]
    assert found.heads.blocks == (Block(2, "end"), Block(4, "mean"))
    assert found.heads.depth == 4
    assert found.weights_AF.shape == (2, 2 * WIDTH + 1)
    assert found.weights_AF[0, :WIDTH].abs().sum() == 0, "the first does not read what the second does"
    new_NF, new_NA = drawn(400, seed=1)
    gap_NA = scores(found, new_NF) - new_NA
    assert (gap_NA**2).mean() < 0.15, "the noise is .09"
    assert all(0.8 < fit.explained < 1 for fit in found.fits)


def test_without_a_choice_all_blocks_are_read_as_by_hand() -> None:
    x_NF, y_NA = drawn(60)
    found = fitted(x_NF, y_NA, torch.ones_like(y_NA), chooses=False)
    assert found.heads == HEADS
    x = x_NF.double().numpy()
    standard = (x - x.mean(0)) / x.std(0)
    for a, fit in enumerate(found.fits):
        penalty = min(PENALTIES, key=lambda p: abs(p - fit.penalty))
        slope, intercept = plain(standard, y_NA[:, a].double().numpy(), np.ones(60), penalty)
        np.testing.assert_allclose(scores(found, x_NF)[:, a], standard @ slope + intercept, atol=1e-3)


def test_labels_that_do_not_count_change_nothing() -> None:
    x_NF, y_NA = drawn(120)
    weights_NA = torch.ones_like(y_NA)
    weights_NA[::3, 0] = 0
    before = fitted(x_NF, y_NA, weights_NA)
    y_NA[::3, 0] = 1e6
    after = fitted(x_NF, y_NA, weights_NA)
    torch.testing.assert_close(after.weights_AF, before.weights_AF)
    assert [fit.answers for fit in after.fits] == [80, 120]
    torch.testing.assert_close(fitted(x_NF, y_NA, 3 * weights_NA).weights_AF, before.weights_AF)


def test_a_source_that_counts_twice_is_like_rows_that_are_there_twice() -> None:
    x_NF, y_NA = drawn(60)
    weights_NA = torch.ones_like(y_NA)
    weights_NA[:20] = 2
    twice = torch.cat([torch.arange(60), torch.arange(20)])
    folds_N = torch.from_numpy(group_folds([str(i // 4) for i in range(60)], 0))
    one = fit_heads(Labelled(x_NF, y_NA, weights_NA, folds_N), HEADS, False)
    other = fit_heads(Labelled(x_NF[twice], y_NA[twice], torch.ones(80, 2), folds_N[twice]), HEADS, False)
    assert [f.penalty for f in one.fits] == [f.penalty for f in other.fits]
    torch.testing.assert_close(scores(one, x_NF), scores(other, x_NF), atol=0.05, rtol=0.05)  # standardized unalike


def test_an_attribute_without_labels_and_a_constant_feature_are_harmless() -> None:
    x_NF, y_NA = drawn(60)
    x_NF[:, 5] = 1234.5
    weights_NA = torch.ones_like(y_NA)
    weights_NA[:, 1] = 0
    found = fitted(x_NF, y_NA, weights_NA, chooses=False)
    assert found.weights_AF[1].abs().sum() == 0
    assert found.fits[1].blocks == ()
    assert found.weights_AF[0, 5] == 0
    assert scores(found, x_NF).isfinite().all()


def test_groups_stay_whole_and_folds_are_alike() -> None:
    groups = [f"tree {i % 37}" for i in range(400)]
    folds = group_folds(groups, 3)
    assert all(len({int(f) for f, g in zip(folds, groups, strict=True) if g == name}) == 1 for name in set(groups))
    assert np.bincount(folds).tolist() == pytest.approx([80] * 5, abs=12)
    assert (group_folds(groups, 3) == folds).all()
    assert set(group_folds(["a", "b", "a"], 0)) == {0, 1}
    with pytest.raises(ValueError, match="all 2 rated answers are of one group"):
        group_folds(["a", "a"], 0)


def test_what_is_tried_has_each_block_and_all_of_them() -> None:
    tried = list(candidates(HEADS))
    assert len(set(tried)) == len(tried)
    assert {(b,) for b in HEADS.blocks} <= set(tried)
    assert HEADS.blocks in tried
    assert all(b.layer == 2 for b in tried[0])
