"""Predicted values stretched to the spread of people's ratings, before they become labels. No model, no prompt.

A regression narrows what it predicts: its values have the mean of the ratings but less spread. Hardly any answer would
be labeled with the ends of the scale, so that they would never be trained. Storage keeps the raw values.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data.attributes import Values
from data.record import Record

Number = TypeVar("Number", float, np.ndarray)

MAX_SCALE = 3.0
"""A predictor that explains less than a ninth of the variance is not stretched further: its noise would spread."""
MIN_PAIRS = 20
"""Fewer rated answers than this do not show a spread."""


class Calibration(Record):
    """value -> scale * value + shift, per attribute; an attribute that is not there stays as it is."""

    scale: dict[str, float] = {}
    """At least 1: values are stretched, never squeezed."""
    shift: dict[str, float] = {}
    """In units of the attribute."""

    def __call__(self, values: Values) -> Values:
        return {name: self.of(name, value) for name, value in values.items()}

    def of(self, name: str, value: Number) -> Number:
        """One value of attribute `name`, or an array of them."""
        return self.scale.get(name, 1.0) * value + self.shift.get(name, 0.0)

    def changes(self, name: str) -> bool:
        """False if values of `name` stay as they are."""
        return (self.scale.get(name, 1.0), self.shift.get(name, 0.0)) != (1.0, 0.0)


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
