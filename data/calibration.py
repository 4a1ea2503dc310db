"""Predicted values stretched to the spread of people's ratings, before they become labels. Knows no model and no prompt.

A regression narrows what it predicts: its values have the mean of the ratings but less spread, so that hardly any answer would be
labelled with the ends of the scale and those ends of the dial would never be trained. Storage keeps the raw values.
"""

from collections.abc import Iterable

import numpy as np

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation
from data.record import Record

MAX_SCALE = 3.0
"""A predictor that explains less than a ninth of the variance is not stretched further: it would be its noise that spreads."""
MIN_PAIRS = 20
"""Fewer rated answers than this say nothing about spread."""


class Calibration(Record):
    """value -> scale * value + shift, per attribute; an attribute that is not there stays as it is."""

    scale: dict[str, float] = {}
    """At least 1: values are stretched, never squeezed."""
    shift: dict[str, float] = {}
    """In units of the attribute."""

    def __call__(self, values: Values) -> Values:
        return {name: self.scale.get(name, 1.0) * value + self.shift.get(name, 0.0) for name, value in values.items()}


def matched_to_people(rows: Iterable[Conversation], schema: AttributeSchema) -> Calibration:
    """The calibration that gives predicted values the mean and spread of the human ones, over answers that have both.

    `rows` must be ones the predictor did not train on: on its own training rows it is nearer to the raters than anywhere else.
    """
    pairs = [(human, predicted) for row in rows for human, predicted in zip(row.human, row.predicted, strict=True)]
    fits = {name: _fit([(h[name], p[name]) for h, p in pairs if name in h and name in p]) for name in schema.names}
    return Calibration(scale={n: f[0] for n, f in fits.items()}, shift={n: f[1] for n, f in fits.items()})


def _fit(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    if len(pairs) < MIN_PAIRS:
        return 1.0, 0.0
    human, predicted = np.array(pairs).T
    spread = float(predicted.std())
    scale = float(np.clip(human.std() / spread, 1.0, MAX_SCALE)) if spread > 0 else 1.0
    return round(scale, 4), round(float(human.mean() - scale * predicted.mean()), 4)
