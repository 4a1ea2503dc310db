"""What brings a rater's values onto people's scale, as its `calibrate` says: fitted on some rated answers, tried on
others. Stored values stay raw. Knows no rater and no file.
"""

from typing import Literal

import numpy as np

from data.calibration import MIN_PAIRS, Calibration
from data.record import Record

FitKind = Literal["isotonic", "linear", "none"]
"""isotonic = a curve that never falls, nearest to people's values; linear = their mean and spread; none = unchanged."""


class RaterFit(Record):
    """Of one attribute."""

    rater: str
    """Whose values they are; "merged" = the one value of several raters."""
    kind: FitKind
    calibration: Calibration
    """Of this attribute alone; where there were too few rated answers, none."""
    n: int
    """Answers with a value of people and of the rater that it was fitted on."""
    held_out: int
    """The same of answers that it has not seen; the errors are those on them."""
    error_before: float | None
    """Mean of |value - people's|, in points of the scale; None without such an answer."""
    error_after: float | None
    """The same of fitted values."""


def rater_fit(
    rater: str, kind: FitKind, name: str, human_N: np.ndarray, values_N: np.ndarray, trained_N: np.ndarray
) -> RaterFit:
    """The fit of attribute `name` on the answers that are `trained_N`, and its errors on the others; NaN = no value."""
    both_N = ~(np.isnan(human_N) | np.isnan(values_N))
    train_N, test_N = both_N & trained_N, both_N & ~trained_N
    found = _calibration(kind, name, human_N[train_N].astype(float), values_N[train_N].astype(float))
    human, values = human_N[test_N].astype(float), values_N[test_N].astype(float)
    return RaterFit(
        rater=rater,
        kind=kind,
        calibration=found,
        n=int(train_N.sum()),
        held_out=len(human),
        error_before=_error(human, values),
        error_after=_error(human, found.of(name, values)),
    )


def _calibration(kind: FitKind, name: str, human: np.ndarray, values: np.ndarray) -> Calibration:
    if kind == "none" or len(human) < MIN_PAIRS:
        return Calibration()
    if kind == "isotonic":
        return Calibration(points={name: isotonic(human, values)})
    scale = float(human.std() / values.std()) if np.ptp(values) else 1.0
    shift = float(human.mean() - scale * values.mean())
    return Calibration(scale={name: float(f"{scale:.6g}")}, shift={name: float(f"{shift:.6g}")})


def isotonic(human: np.ndarray, values: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Points (value, label) of the curve that never falls and is nearest to people's values, in least squares.

    Micro-example: values 1, 2, 3, 4 that people rated 0, 2, 1, 4 -> (1, 0), (2, 1.5), (3, 1.5), (4, 4).
    """
    import scipy.optimize  # a third of a second, which settings do without

    distinct, place = np.unique(values, return_inverse=True)
    counts = np.bincount(place)
    found = scipy.optimize.isotonic_regression(np.bincount(place, human) / counts, weights=counts).x
    # Of a flat stretch the ends are enough: straight lines lie between points.
    inner = np.zeros(len(found), bool)
    inner[1:-1] = (found[1:-1] == found[:-2]) & (found[1:-1] == found[2:])
    return tuple(
        (round(float(v), 6), round(float(label), 6)) for v, label in zip(distinct[~inner], found[~inner], strict=True)
    )


def _error(human: np.ndarray, values: np.ndarray) -> float | None:
    return round(float(np.abs(human - values).mean()), 4) if len(human) else None
