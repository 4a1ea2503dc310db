"""A rater that reads the text alone: attributes that are measures of it, on the scale of the attribute.

For attributes that no person rated. HelpSteer's verbosity is "the amount of detail included in the response, relative
to what is asked for", its complexity "whether the response can be written by anyone with basic language competency or
requires deep domain expertise" (arXiv 2311.09528, section 3); the paper shows both by length and by the Flesch-Kincaid
grade (section 7). Knows no row, no file and no predictor.
"""

import math
from collections.abc import Iterable

from data.calibration import Calibration
from data.record import Record
from data.text_measures import MEASURES, TextMeasure


class TextRater(Record):
    """Attribute -> measure of the text, and where its values stand on the attribute's scale."""

    measures: dict[str, TextMeasure] = {}
    scale: Calibration = Calibration()
    """Raw value -> value of the attribute, by `points`."""
    elsewhere: dict[str, str] = {}
    """Of a policy: attributes whose labels others gave, who are not at hand where it answers -> who gave them."""

    def __call__(self, answer: str) -> dict[str, float]:
        """The value of each measured attribute, not rounded, within its scale; nothing for a text without a word."""
        raw = {name: MEASURES[kind].of(answer) for name, kind in self.measures.items()}
        return {name: float(self.scale.of(name, value)) for name, value in raw.items() if not math.isnan(value)}

    def raters(self, names: Iterable[str]) -> dict[str, str]:
        """Who gives the value of each attribute: "predictor", or "text: " and the measure, or others."""
        measured = {name: f"text: {kind}" for name, kind in self.measures.items()}
        return dict.fromkeys(names, PREDICTOR) | measured | self.elsewhere


PREDICTOR = "predictor"
"""The rater of every attribute that nothing else gives."""
