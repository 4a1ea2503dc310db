"""Metrics over arrays: correlations, errors, reliability, pairwise accuracy, steering and its bands. Knows no model.

scipy.stats takes half a second, which commands that only read settings do without: it is imported where ranks are made.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Numbers = Sequence[float] | np.ndarray
NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
BAND_95 = (2.5, 97.5)
"""Percentiles that a 95 % band lies between."""
ROUNDING = 1e-9
"""Ranks less their mean are halves but for the last digits: a smaller spread is none."""


def spearman(x: Numbers, y: Numbers) -> float:
    """Rank correlation over pairs without NaN; NaN if fewer than three are left or one side is constant."""
    a, b = _paired(x, y)
    if _flat(a, b):
        return float("nan")
    import scipy.stats

    return float(scipy.stats.spearmanr(a, b).statistic)


def spearman_ceiling(truth: Numbers) -> float:
    """The highest Spearman with `truth` that values without ties can have: 1 if it has none, NaN if it is constant.

    [0, 0, 0, 1] -> 0.77: a judge must put the three in some order, and the truth knows none.
    """
    ranks = _ranks(np.asarray(truth, float)[~np.isnan(truth)])
    return float("nan") if _flat(ranks, ranks) else float(ranks.std() / np.arange(len(ranks)).std())


def partial_spearman(x: Numbers, y: Numbers, given: Sequence[str]) -> float:
    """Spearman of `x` and `y` among those with an equal `given`: of their ranks, less the mean rank of these.

    That is the partial rank correlation given a name, whatever the shape of its effect. NaN as for `spearman`, or where
    no two with an equal `given` differ.
    """
    a, b, given_N = _paired(x, y, np.asarray(given, str))
    if len(a) < 3:
        return float("nan")
    _, group_N = np.unique(given_N, return_inverse=True)
    a, b = (ranks - (np.bincount(group_N, ranks) / np.bincount(group_N))[group_N] for ranks in (_ranks(a), _ranks(b)))
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
        "pearson": _pearson(a, b),
        "spearman": spearman(a, b),
    }


def reliability(predicted: Numbers, human: Numbers, num_bins: int = 10) -> list[dict[str, float]]:
    """Mean human rating by predicted value: answers in order of their prediction, in bins as equal as ties allow.

    Per bin `n`, mean `predicted`, mean `human` and `se`, the standard error of the latter (NaN for one answer). Equal
    predictions share a bin, so there may be fewer bins than `num_bins`. By default deciles (reliability diagrams:
    arXiv 1706.04599, section 2).
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
    """`accuracy`: the share of pairs whose chosen side scores higher, a tie counting half; `n`, `ties`; `low`..`high`.

    The interval is the 95 % one. Pairs with a NaN are left out; of no pairs, only `n` and `ties` are returned.
    """
    a, b = _paired(chosen, rejected)
    if len(a) == 0:
        return {"n": 0, "ties": 0}
    accuracy = float(np.mean(np.where(a == b, 0.5, a > b)))
    low, high = share_interval(accuracy, len(a))
    return {"n": len(a), "ties": int(np.sum(a == b)), "accuracy": accuracy, "low": low, "high": high}


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `n` > 0 cases (Wilson 1927): within 0..1, and with a width at 0 and 1."""
    z2 = NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return middle - half, middle + half


def weighted_accuracy(parts: Sequence[Mapping[str, float]], weights: Numbers) -> dict[str, float]:
    """The mean `accuracy` of independent parts, and its 95 % interval from theirs.

    MOVER: Zou and Donner 2008, doi 10.1002/sim.3095.
    """
    w = np.asarray(weights, float) / np.sum(weights)
    middle, low, high = (np.array([part[name] for part in parts]) for name in ("accuracy", "low", "high"))
    mean = float(w @ middle)
    return {
        "accuracy": mean,
        "low": mean - float(np.linalg.norm(w * (middle - low))),
        "high": mean + float(np.linalg.norm(w * (high - middle))),
    }


def agreement(x: Numbers, y: Numbers) -> dict[str, float]:
    """`n`, `spearman` and `pearson` over pairs without NaN, each with its 95 % interval (`_low`, `_high`), or NaN.

    The intervals are Fisher's, for Spearman with the standard error of Bonett and Wright (2000, doi
    10.1007/BF02294183). They need four pairs.
    """
    a, b = _paired(x, y)
    found: dict[str, float] = {"n": len(a)}
    rank = spearman(a, b)
    for name, r, spread in (("spearman", rank, 1 + rank**2 / 2), ("pearson", _pearson(a, b), 1.0)):
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
    """One attribute's dose-response: the distinct `requested` values and the mean `measured` at each.

    Also `spearman` and `slope` over all single answers, whether the means never fall (`monotonic`), and the lowest and
    the highest mean (`reached`).
    """
    requested_N, measured_N = _paired(requested, measured)
    means = _means(requested_N, measured_N)
    return {
        "requested": list(means),
        "measured": [round(m, 4) for m in means.values()],
        "n": len(requested_N),
        "spearman": round(spearman(requested_N, measured_N), 4),
        "monotonic": all(b >= a for a, b in itertools.pairwise(means.values())),
        "slope": round(slope(requested_N, measured_N), 4),
        "reached": [round(limit(means.values()), 4) for limit in (min, max)] if means else [],
    }


def mean_bands(
    requested: Numbers, measured: Numbers, questions: Sequence[str], num_resamples: int, seed: int
) -> tuple[list[float], list[float]]:
    """The 95 % band, low and high, of the mean `measured` at each distinct `requested` value, over other questions.

    A percentile bootstrap over whole `questions`: the answers to one question are alike, and each has every
    value. NaN where fewer than two questions were answered. The order of the answers does not matter.
    """
    requested_N, measured_N, question_N = _paired(requested, measured, np.asarray(questions, str))
    values, value_N = np.unique(requested_N, return_inverse=True)
    names, question_N = np.unique(question_N, return_inverse=True)
    if len(names) == 0:
        return [], []
    cell_N, shape_QV = question_N * len(values) + value_N, (len(names), len(values))
    sums_QV, counts_QV = (
        np.bincount(cell_N, weights, minlength=math.prod(shape_QV)).reshape(shape_QV) for weights in (measured_N, None)
    )
    drawn_RQ = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)
    with np.errstate(invalid="ignore"):  # a draw may hold no question that was answered at a value
        means_RV = (drawn_RQ @ sums_QV) / (drawn_RQ @ counts_QV)
    bands = [
        _band(means_R) if n > 1 else (math.nan, math.nan)
        for means_R, n in zip(means_RV.T, (counts_QV > 0).sum(axis=0), strict=True)
    ]
    return [low for low, _ in bands], [high for _, high in bands]


def spearman_interval(
    requested: Numbers, measured: Numbers, questions: Sequence[str], num_resamples: int, seed: int
) -> tuple[float, float]:
    """The 95 % interval, low and high, of `spearman` over other questions; NaN where `mean_bands` is, or it is.

    A percentile bootstrap over whole `questions`, as there; the ranks are those among all answers, so that a resample
    is a sum. The order of the answers does not matter.
    """
    r_R = resampled_spearman(requested, measured, questions, num_resamples, seed)
    r_R = r_R[np.isfinite(r_R)]
    return _band(r_R) if len(r_R) else (math.nan, math.nan)


def resampled_spearman(
    requested: Numbers, measured: Numbers, questions: Sequence[str], num_resamples: int, seed: int
) -> np.ndarray:
    """`spearman` in each resample of `spearman_interval`, [R]: equal questions and seeds draw the same ones.

    Empty where there are fewer than two questions, or no correlation; NaN for a resample without one.
    """
    a, b, question_N = _paired(requested, measured, np.asarray(questions, str))
    names, question_N = np.unique(question_N, return_inverse=True)
    if len(names) < 2 or _flat(a, b):
        return np.zeros(0)
    a, b = (_ranks(values) - (len(values) + 1) / 2 for values in (a, b))
    terms = (None, a, b, a * b, a * a, b * b)
    sums_QT = np.stack([np.bincount(question_N, term, minlength=len(names)) for term in terms], axis=1)
    drawn_RQ = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)
    n, a, b, ab, aa, bb = (drawn_RQ @ sums_QT).T
    with np.errstate(invalid="ignore", divide="ignore"):  # in a draw a side may have no spread
        r_R: np.ndarray = (n * ab - a * b) / np.sqrt((n * aa - a * a) * (n * bb - b * b))
    return r_R


def _band(means_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means_R[~np.isnan(means_R)], BAND_95)
    return round(float(low), 4), round(float(high), 4)


def mean_absolute_gap(requested: Numbers, measured: Numbers) -> float:
    """How far an attribute moves while another is set: range of its means at each value `requested` of the other."""
    means = _means(*_paired(requested, measured)).values()
    return max(means) - min(means) if means else float("nan")


def _means(requested_N: np.ndarray, measured_N: np.ndarray) -> dict[float, float]:
    """Requested value -> mean of the measured ones, low to high."""
    return {float(v): float(np.mean(measured_N[requested_N == v])) for v in np.unique(requested_N)}


def _paired(x: Numbers, y: Numbers, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pairs without NaN, and the entries of `others` that belong to them."""
    columns = (np.asarray(x, float), np.asarray(y, float), *others)
    assert len({c.shape for c in columns}) == 1, f"unequal shapes: {[c.shape for c in columns]}"
    keep = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
    return tuple(c[keep] for c in columns)


def _ranks(values_N: np.ndarray) -> np.ndarray:
    """1 = the lowest; equal values have the mean of their ranks."""
    import scipy.stats

    ranks_N: np.ndarray = scipy.stats.rankdata(values_N)
    return ranks_N


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float("nan") if _flat(a, b) else float(np.corrcoef(a, b)[0, 1])


def _flat(a: np.ndarray, b: np.ndarray) -> bool:
    """True where no correlation is defined: fewer than three pairs, or a side without spread."""
    return len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0
