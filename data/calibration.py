"""Predicted values on the scale of the labels: as wide as people's ratings, or spread by rank. No model, no prompt.

A regression narrows what it predicts: its values have the mean of the ratings but less spread. Hardly any answer would
be labeled with the ends of the scale, so that they would never be trained. Storage keeps the raw values.
"""

from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np

from data.attributes import Attribute, AttributeSchema, Values
from data.record import Record

Number = TypeVar("Number", float, np.ndarray)

MAX_SCALE = 3.0
"""A predictor that explains less than a ninth of the variance is not stretched further: its noise would spread."""
NUM_POINTS = 41
"""Of a calibration by rank: every fortieth of the answers."""
BEYOND_HALF = 1e-4
"""A value at a cut has the label above it; half to even would round every other one down."""
MIN_PAIRS = 20
"""Fewer rated answers than this do not show a spread."""


class Calibration(Record):
    """value -> scale * value + shift, or by `points`, per attribute; one that is not there stays as it is."""

    scale: dict[str, float] = {}
    """At least 1: values are stretched, never squeezed."""
    shift: dict[str, float] = {}
    """In units of the attribute."""
    points: dict[str, tuple[tuple[float, float], ...]] = {}
    """(value, label), both rising; straight lines between them, and the end labels beyond."""

    def __call__(self, values: Values) -> Values:
        return {name: self.of(name, value) for name, value in values.items()}

    def of(self, name: str, value: Number) -> Number:
        """One value of attribute `name`, or an array of them; NaN stays NaN."""
        if points := self.points.get(name):
            knots, labels = np.array(points).T
            label: Number = np.interp(value, knots, labels)
            return label
        return self.scale.get(name, 1.0) * value + self.shift.get(name, 0.0)

    def without(self, names: Collection[str]) -> "Calibration":
        """The same, but values of `names` stay as they are."""
        kept = {key: {n: v for n, v in found.items() if n not in names} for key, found in self}
        return Calibration.model_validate(kept)

    def changes(self, name: str) -> bool:
        """False if values of `name` stay as they are."""
        return name in self.points or (self.scale.get(name, 1.0), self.shift.get(name, 0.0)) != (1.0, 0.0)


def matched_to_people(human_NA: np.ndarray, predicted_NA: np.ndarray, names: Sequence[str]) -> Calibration:
    """The calibration that gives predicted values the mean and spread of the human ones, over answers that have both.

    NaN = not rated. The answers must be ones the predictor did not train on: those it knows too well.
    """
    fits = {
        name: _fit(human, predicted) for name, human, predicted in zip(names, human_NA.T, predicted_NA.T, strict=True)
    }
    return Calibration(scale={n: f[0] for n, f in fits.items()}, shift={n: f[1] for n, f in fits.items()})


def _fit(human: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    both = ~(np.isnan(human) | np.isnan(predicted))
    if both.sum() < MIN_PAIRS:
        return 1.0, 0.0
    human, predicted = human[both].astype(float), predicted[both].astype(float)
    # Not `std() > 0`: rounding gives a constant column a spread of its own.
    scale = float(np.clip(human.std() / predicted.std(), 1.0, MAX_SCALE)) if np.ptp(predicted) else 1.0
    return round(scale, 4), round(float(human.mean() - scale * predicted.mean()), 4)


def spread_by_rank(predicted_NA: np.ndarray, schema: AttributeSchema) -> Calibration:
    """The calibration that gives every label of the scale to as many answers as any other, in the order of the values.

    NaN = not rated. An attribute with too few values, or with only one, stays as it is.
    """
    found = {a.name: _ranks(values, a.low, a.high) for a, values in zip(schema.attributes, predicted_NA.T, strict=True)}
    return Calibration(points={name: points for name, points in found.items() if points})


def by_cuts(cuts: Sequence[float], attribute: Attribute) -> tuple[tuple[float, float], ...]:
    """The points of values whose label rises by one at each of the rising `cuts`, of which there are high - low.

    Between two cuts the value rises evenly, so that labels are what rounding gives. Beyond the outer cuts it comes to
    the ends of the scale after half the distance to the next cut, or half the cut where there is only one.
    Micro-example, a scale of 0 to 2 and cuts at 10 and 30: 0 -> 0.0, 10 -> 0.5, 20 -> 1.0, 30 -> 1.5, 40 -> 2.0.
    """
    first, last = (cuts[1] - cuts[0], cuts[-1] - cuts[-2]) if len(cuts) > 1 else (abs(cuts[0]) or 1.0,) * 2
    inner = [(float(cut), attribute.low + i + 0.5 + BEYOND_HALF) for i, cut in enumerate(cuts)]
    ends = (cuts[0] - first / 2, float(attribute.low)), (cuts[-1] + last / 2, float(attribute.high))
    return ends[0], *inner, ends[1]


def _ranks(values: np.ndarray, low: int, high: int) -> tuple[tuple[float, float], ...]:
    """Micro-example, a scale of 0 to 4: the middle value has label 2, and a tenth from the bottom has 0."""
    values = values[~np.isnan(values)].astype(float)
    if len(values) < MIN_PAIRS or not np.ptp(values):
        return ()
    shares = np.linspace(0, 1, NUM_POINTS)
    knots = np.quantile(values, shares)
    # Half a step beyond both ends: rounded to whole labels, the ends get as many answers as the others.
    labels = np.clip(low - 0.5 + (high - low + 1) * shares, low, high)
    # Answers of equal value have equal labels: the mean of those that their ranks have.
    distinct = np.unique(knots)
    return tuple((round(float(k), 6), round(float(labels[knots == k].mean()), 6)) for k in distinct)
