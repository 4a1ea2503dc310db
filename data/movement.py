"""How far answers move from the lowest to the highest request of an attribute, in standard deviations of the labels.

Spearman tells whether the order is right; this tells whether a reader would notice. Numbers in, numbers out.
"""

import math
from collections.abc import Sequence

import numpy as np

from data.measures import BAND_95, Numbers
from data.record import Record


class Movement(Record):
    """What changes from one end of a request to the other, over the questions that were answered at both."""

    requested: tuple[float, float]
    """The lowest and the highest requested value."""
    measured: tuple[float, float]
    """The means there, in the unit of the measure."""
    questions: int
    deviation: float | None
    """The standard deviation of the same measure among the answers that the policy learned from; None = unknown."""
    moved: float | None
    low: float | None
    high: float | None
    """The difference of the means in such deviations, with its 95 % interval over questions."""
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    """The higher mean over the lower one, with its 95 % interval; None unless the lower one is positive."""


def movement(
    requested: Numbers,
    measured: Numbers,
    questions: Sequence[str],
    deviation: float | None,
    num_resamples: int,
    seed: int,
) -> Movement | None:
    """The movement between the ends of `requested`; None if fewer than two questions were answered at both.

    The intervals are those of a percentile bootstrap over whole `questions`. The order of the answers does not matter.
    """
    requested_N, measured_N, question_N = np.asarray(requested, float), np.asarray(measured, float), np.array(questions)
    known_N = ~np.isnan(measured_N)
    if not known_N.any():
        return None
    least, most = float(requested_N[known_N].min()), float(requested_N[known_N].max())
    names = [{str(q) for q in question_N[known_N & (requested_N == end)]} for end in (least, most)]
    both = sorted(names[0] & names[1])
    if least == most or len(both) < 2:
        return None
    means_2Q = np.array(
        [
            [measured_N[known_N & (requested_N == end) & (question_N == question)].mean() for question in both]
            for end in (least, most)
        ]
    )
    drawn_RQ = np.random.default_rng(seed).integers(len(both), size=(num_resamples, len(both)))
    low_R, high_R = (row_Q[drawn_RQ].mean(axis=1) for row_Q in means_2Q)
    low, high = (float(row_Q.mean()) for row_Q in means_2Q)
    moved = _interval(high - low, high_R - low_R, deviation) if deviation else (None, None, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _interval(high / low, high_R / low_R, 1.0) if low > 0 else (None, None, None)
    return Movement(
        requested=(least, most),
        measured=(round(low, 4), round(high, 4)),
        questions=len(both),
        deviation=round(deviation, 4) if deviation else None,
        **dict(zip(("moved", "low", "high"), moved, strict=True)),
        **dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True)),
    )


def _interval(value: float, drawn_R: np.ndarray, unit: float) -> tuple[float | None, float | None, float | None]:
    """A value and its 95 % interval, in `unit`; None for what is not finite."""
    low, high = np.percentile(drawn_R, BAND_95)
    found = (float(v) / unit for v in (value, low, high))
    one, two, three = (round(v, 4) if math.isfinite(v) else None for v in found)
    return one, two, three
