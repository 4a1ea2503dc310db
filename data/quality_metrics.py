"""The quality of an attribute predictor, as records: errors, reliability, agreement with people and with a judge.

Errors are in points of the scale. None stands for NaN: no answer, or no correlation. Knows no model and no file.
"""

from typing import Any

from data.calibration import Calibration
from data.record import Record

Counts = dict[str, int]


class ErrorMetrics(Record):
    """Predicted against true values, over `n` answers that have both."""

    n: int
    mae: float | None = None
    rmse: float | None = None
    pearson: float | None = None
    spearman: float | None = None


class ReliabilityBin(Record):
    """Answers with about the same prediction."""

    n: int
    predicted: float
    human: float
    se: float | None
    """Standard error of `human`; None for one answer."""


class CalibratedErrors(ErrorMetrics):
    """The same after predicted values were stretched to the spread of people's ratings."""

    std_predicted: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()


class LengthBaseline(Record):
    """What the length of the answer alone would give."""

    spearman: float | None
    lead: float | None = None
    """By how much the predictor's Spearman is higher."""


class QualityBaselines(Record):
    """What is to beat."""

    mean: ErrorMetrics
    """The mean of the training rows, for every answer."""
    length: LengthBaseline


class TruthErrors(Record):
    """Against the truth of the synthetic world: the predictor, and one rater."""

    predictor: ErrorMetrics
    one_rater: ErrorMetrics


class AttributeQuality(ErrorMetrics):
    """One attribute of the predictor, on answers that it did not train on."""

    std_human: float | None = None
    std_predicted: float | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    baselines: QualityBaselines
    calibrated: CalibratedErrors | None = None
    """None = the calibration leaves the attribute as it is."""
    truth: TruthErrors | None = None

    def without_bins(self) -> "AttributeQuality":
        """What fits a manifest."""
        kept: dict[str, Any] = {name: value for name, value in self if name != "reliability"}
        if self.calibrated:
            kept["calibrated"] = CalibratedErrors(**{n: v for n, v in self.calibrated if n != "reliability"})
        return AttributeQuality(**kept)


class Collinearity(Record):
    """Spearman of people's ratings of every pair of attributes, and over how many answers."""

    names: tuple[str, ...]
    spearman: tuple[tuple[float | None, ...], ...]
    n: tuple[tuple[int, ...], ...]


class PredictorQuality(Record):
    """All that is known of a predictor without running it again."""

    answers: Counts
    """`rated`, `held_out`, `unscored`."""
    attributes: dict[str, AttributeQuality]
    calibration: Calibration
    collinearity: Collinearity


class PairAccuracy(Record):
    """The share of pairs whose chosen side scores higher, with its 95 % interval."""

    n: int
    ties: int = 0
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None


class SectionAccuracy(Record):
    """A section of RewardBench."""

    accuracy: float
    low: float
    high: float
    missing: tuple[str, ...]
    """Subsets that the file does not have."""


class PairMetrics(Record):
    """A set of pairs of which people preferred one side."""

    pairs: int
    rejected: Counts
    unscored: int
    weights: dict[str, float]
    predictor: PairAccuracy
    """Of the weighted sum of predicted values."""
    length: PairAccuracy
    each_attribute: dict[str, float | None]
    subsets: dict[str, PairAccuracy] = {}
    sections: dict[str, SectionAccuracy] = {}


class Agreement(Record):
    """Correlations with their 95 % intervals."""

    n: int
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    pearson: float | None
    pearson_low: float | None
    pearson_high: float | None


class JudgedMetrics(Record):
    """A set of answers that a judge scored."""

    answers: int
    rejected: Counts
    unscored: int
    score: Agreement
    """Of the weighted sum of predicted values."""
    length: Agreement
    each_attribute: dict[str, Agreement]
