"""Pure metrics over arrays: rank correlation, errors, the steering table. Knows no model and no prompt."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

Numbers = Sequence[float] | np.ndarray


def spearman(x: Numbers, y: Numbers) -> float:
    """Rank correlation over pairs without NaN; NaN if fewer than three are left or one side is constant."""
    a, b = _paired(x, y)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return float(scipy.stats.spearmanr(a, b).statistic)


def errors(truth: Numbers, predicted: Numbers) -> dict[str, float]:
    """`n`, `mae`, `rmse` (scale points), `pearson`, `spearman` over pairs without NaN."""
    a, b = _paired(truth, predicted)
    if len(a) == 0:
        return {"n": 0}
    flat = len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0
    return {
        "n": len(a),
        "mae": float(np.mean(np.abs(a - b))),
        "rmse": float(np.sqrt(np.mean((a - b) ** 2))),
        "pearson": float("nan") if flat else float(np.corrcoef(a, b)[0, 1]),
        "spearman": spearman(a, b),
    }


def steering(requested: Numbers, measured: Numbers) -> dict[str, Any]:
    """One attribute's dose-response: distinct `requested` values, mean `measured` at each, `spearman` over all single
    answers, and whether the means never fall (`monotonic`)."""
    asked, got = _paired(requested, measured)
    values = sorted({float(v) for v in asked})
    means = [float(np.mean(got[asked == v])) for v in values]
    return {
        "requested": values,
        "measured": [round(m, 4) for m in means],
        "n": len(asked),
        "spearman": round(spearman(asked, got), 4),
        "monotonic": all(b >= a for a, b in itertools.pairwise(means)),
    }


def _paired(x: Numbers, y: Numbers) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, float), np.asarray(y, float)
    assert a.shape == b.shape, f"{a.shape} against {b.shape}"
    keep = ~(np.isnan(a) | np.isnan(b))
    return a[keep], b[keep]
