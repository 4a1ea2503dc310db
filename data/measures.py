"""Pure metrics over arrays: correlations, errors, reliability, pairwise accuracy, the steering table and its bands. Knows no model and no prompt."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

Numbers = Sequence[float] | np.ndarray
NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
BAND_95 = (2.5, 97.5)
"""Percentiles that a 95 % band lies between."""
ROUNDING = 1e-9
"""Ranks less their mean are halves but for the last digits: a spread below this is none."""


def spearman(x: Numbers, y: Numbers) -> float:
    """Rank correlation over pairs without NaN; NaN if fewer than three are left or one side is constant."""
    a, b = _paired(x, y)
    return float("nan") if _flat(a, b) else float(scipy.stats.spearmanr(a, b).statistic)


def spearman_ceiling(truth: Numbers) -> float:
    """The highest Spearman with `truth` that values without ties can have, 1 only if all of it differs; NaN if it is constant.

    [0, 0, 0, 1] -> 0.77: a judge must put the three in some order, and whichever it is, the truth knows none.
    """
    ranks = scipy.stats.rankdata(np.asarray(truth, float)[~np.isnan(truth)])
    return float("nan") if _flat(ranks, ranks) else float(ranks.std() / np.arange(len(ranks)).std())


def partial_spearman(x: Numbers, y: Numbers, given: Sequence[str]) -> float:
    """Spearman of `x` and `y` among those with an equal `given`: of their ranks, less the mean rank of these.

    That is the partial rank correlation with `given` taken as a name, whatever its effect is shaped like. NaN as for `spearman`, or where no two
    with an equal `given` differ.
    """
    a, b, given_N = _complete(x, y, np.asarray(given, str))
    if len(a) < 3:
        return float("nan")
    _, group_N = np.unique(given_N, return_inverse=True)
    a, b = (
        ranks - (np.bincount(group_N, ranks) / np.bincount(group_N))[group_N]
        for ranks in (scipy.stats.rankdata(a), scipy.stats.rankdata(b))
    )
    return float("nan") if min(np.ptp(a), np.ptp(b)) < ROUNDING else float(np.corrcoef(a, b)[0, 1])


def slope(x: Numbers, y: Numbers) -> float:
    """Points of `y` per point of `x`: the least-squares line over pairs without NaN; NaN where `x` is constant."""
    a, b = _paired(x, y)
    if len(a) < 2 or np.ptp(a) == 0:
        return float("nan")
    a = a - a.mean()
    return float(a @ b / (a @ a))


def errors(truth: Numbers, predicted: Numbers) -> dict[str, float]:
    """`n`, `mae`, `rmse` (scale points), `pearson`, `spearman` over pairs without NaN; of no pair, only `n`."""
    a, b = _paired(truth, predicted)
    if len(a) == 0:
        return {"n": 0}
    return {
        "n": len(a),
        "mae": float(np.mean(np.abs(a - b))),
        "rmse": float(np.sqrt(np.mean((a - b) ** 2))),
        "pearson": float("nan") if _flat(a, b) else float(np.corrcoef(a, b)[0, 1]),
        "spearman": spearman(a, b),
    }


def reliability(predicted: Numbers, human: Numbers, num_bins: int = 10) -> list[dict[str, float]]:
    """What people said where the predictor said so much: answers in order of their prediction, cut into bins as equal as ties allow.

    Per bin `n`, mean `predicted`, mean `human` and `se`, the standard error of the latter (NaN for one answer). Equal predictions share
    a bin, so there may be fewer of them than asked for. By default deciles (reliability diagrams: arXiv 1706.04599, section 2).
    """
    a, b = _paired(predicted, human)
    if len(a) == 0:
        return []
    edges = np.quantile(a, np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, a, side="right")
    return [_bin(a[bins == i], b[bins == i]) for i in np.unique(bins)]


def _bin(predicted: np.ndarray, human: np.ndarray) -> dict[str, float]:
    n = len(human)
    se = float(human.std(ddof=1)) / math.sqrt(n) if n > 1 else float("nan")
    return {"n": n, "predicted": float(predicted.mean()), "human": float(human.mean()), "se": se}


def collinearity(columns_NA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman of every pair of columns over the lines that have both, and how many those are: `r_AA`, `n_AA`."""
    width = columns_NA.shape[1]
    r_AA, n_AA = np.full((width, width), np.nan), np.zeros((width, width), int)
    for i, j in itertools.combinations_with_replacement(range(width), 2):
        a, b = _paired(columns_NA[:, i], columns_NA[:, j])
        r_AA[i, j] = r_AA[j, i] = spearman(a, b)
        n_AA[i, j] = n_AA[j, i] = len(a)
    return r_AA, n_AA


def pairwise_accuracy(chosen: Numbers, rejected: Numbers) -> dict[str, float]:
    """`accuracy`: the share of pairs whose chosen side scores higher, a tie counting half; with `n`, `ties` and the 95 % interval `low`..`high`.

    Pairs with a NaN are left out; of none, `n` and `ties` are all there is.
    """
    a, b = _paired(chosen, rejected)
    if len(a) == 0:
        return {"n": 0, "ties": 0}
    accuracy = float(np.mean(np.where(a == b, 0.5, a > b)))
    low, high = share_interval(accuracy, len(a))
    return {"n": len(a), "ties": int(np.sum(a == b)), "accuracy": accuracy, "low": low, "high": high}


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `n` > 0 cases (Wilson 1927): unlike the normal one it stays within 0..1 and has a width at 0 and 1."""
    z2 = NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return middle - half, middle + half


def weighted_accuracy(parts: Sequence[Mapping[str, float]], weights: Numbers) -> dict[str, float]:
    """The mean of the `accuracy` of independent parts, and its 95 % interval made of theirs (MOVER: Zou and Donner 2008, doi 10.1002/sim.3095)."""
    w = np.asarray(weights, float) / np.sum(weights)
    middle, low, high = (np.array([part[name] for part in parts]) for name in ("accuracy", "low", "high"))
    mean = float(w @ middle)
    return {
        "accuracy": mean,
        "low": mean - float(np.linalg.norm(w * (middle - low))),
        "high": mean + float(np.linalg.norm(w * (high - middle))),
    }


def agreement(x: Numbers, y: Numbers) -> dict[str, float]:
    """`n`, `spearman` and `pearson` over pairs without NaN, each with its 95 % interval (`_low`, `_high`); NaN where no correlation is defined.

    The intervals are Fisher's, for Spearman with the standard error of Bonett and Wright (2000, doi 10.1007/BF02294183); four pairs are the fewest
    that have one.
    """
    a, b = _paired(x, y)
    found: dict[str, float] = {"n": len(a)}
    pearson = float("nan") if _flat(a, b) else float(np.corrcoef(a, b)[0, 1])
    rank = spearman(a, b)
    for name, r, spread in (("spearman", rank, 1 + rank**2 / 2), ("pearson", pearson, 1.0)):
        low, high = _correlation_interval(r, len(a), spread)
        found |= {name: r, f"{name}_low": low, f"{name}_high": high}
    return found


def _correlation_interval(r: float, n: int, spread: float) -> tuple[float, float]:
    """`spread` is the variance of Fisher's z, times n - 3."""
    if n < 4 or math.isnan(r):
        return float("nan"), float("nan")
    z, half = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15)), NORMAL_95 * math.sqrt(spread / (n - 3))
    return math.tanh(z - half), math.tanh(z + half)


def steering(requested: Numbers, measured: Numbers) -> dict[str, Any]:
    """One attribute's dose-response: distinct `requested` values, mean `measured` at each, `spearman` and `slope` over all single answers,
    whether the means never fall (`monotonic`), and the lowest and the highest of them (`reached`)."""
    asked, got = _paired(requested, measured)
    values = sorted({float(v) for v in asked})
    means = [float(np.mean(got[asked == v])) for v in values]
    return {
        "requested": values,
        "measured": [round(m, 4) for m in means],
        "n": len(asked),
        "spearman": round(spearman(asked, got), 4),
        "monotonic": all(b >= a for a, b in itertools.pairwise(means)),
        "slope": round(slope(asked, got), 4),
        "reached": [round(limit(means), 4) for limit in (min, max)] if means else [],
    }


def mean_bands(
    requested: Numbers, measured: Numbers, questions: Sequence[str], num_resamples: int, seed: int
) -> tuple[list[float], list[float]]:
    """The 95 % band, low and high, of the mean `measured` at each distinct `requested` value, as other questions would have given other means.

    A percentile bootstrap that draws whole `questions` with all of their answers, for answers to one question are alike and each is asked at every
    value. NaN where fewer than two questions were answered: one says nothing of another. The order of the answers does not matter.
    """
    asked, got, question_N = _complete(requested, measured, np.asarray(questions, str))
    values, value_N = np.unique(asked, return_inverse=True)
    names, question_N = np.unique(question_N, return_inverse=True)
    if len(names) == 0:
        return [], []
    cell_N, shape_QV = question_N * len(values) + value_N, (len(names), len(values))
    sums_QV, counts_QV = (
        np.bincount(cell_N, weights, minlength=math.prod(shape_QV)).reshape(shape_QV) for weights in (got, None)
    )
    drawn_RQ = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)
    with np.errstate(invalid="ignore"):  # a draw may hold no question that was answered at a value
        means_RV = (drawn_RQ @ sums_QV) / (drawn_RQ @ counts_QV)
    bands = [
        _band(means_R) if n > 1 else (math.nan, math.nan)
        for means_R, n in zip(means_RV.T, (counts_QV > 0).sum(axis=0), strict=True)
    ]
    return [low for low, _ in bands], [high for _, high in bands]


def _band(means_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means_R[~np.isnan(means_R)], BAND_95)
    return round(float(low), 4), round(float(high), 4)


def mean_absolute_gap(requested: Numbers, measured: Numbers) -> float:
    """How far an attribute that was not turned moves while another is: range of its means at each value that was `requested` of the other."""
    asked, got = _paired(requested, measured)
    means = [float(np.mean(got[asked == v])) for v in np.unique(asked)]
    return max(means) - min(means) if means else float("nan")


def _paired(x: Numbers, y: Numbers) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, float), np.asarray(y, float)
    assert a.shape == b.shape, f"{a.shape} against {b.shape}"
    keep = ~(np.isnan(a) | np.isnan(b))
    return a[keep], b[keep]


def _complete(x: Numbers, y: Numbers, name_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs without NaN, and the name of each."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    assert a.shape == b.shape == name_N.shape, f"{a.shape} against {b.shape}, with names {name_N.shape}"
    keep = ~(np.isnan(a) | np.isnan(b))
    return a[keep], b[keep], name_N[keep]


def _flat(a: np.ndarray, b: np.ndarray) -> bool:
    """True where no correlation is defined: fewer than three pairs, or a side without spread."""
    return len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0
