"""What answers at requested attribute values come to: the records of a report, which its pages and the model card read.

Values are in points of the scale. None stands for NaN: no answer, or no correlation. Knows no policy and no file.
"""

from data.movement import Movement
from data.quality_metrics import Counts, PairAccuracy
from data.record import Record
from data.stage_metrics import Drift, Means, PolicyMeasures, StageMetrics


class SteeringCurve(Record):
    """One attribute's dose-response."""

    requested: tuple[float, ...]
    measured: tuple[float | None, ...]
    """The mean at each requested value."""
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    """The 95 % band of these means, as other questions would have given others."""
    n: int
    spearman: float | None
    slope: float | None
    """Both over all single answers."""
    spearman_low: float | None = None
    spearman_high: float | None = None
    """The 95 % interval of `spearman`, as other questions would have given another."""
    monotonic: bool
    """The means never fall."""
    reached: tuple[float | None, ...]
    """The lowest and the highest mean."""
    mean_absolute_gap: float
    """How far the other attributes move, mean over them."""
    movement: Movement | None = None
    """From the lowest to the highest request."""


class CrossTalk(Record):
    """Slopes of all `measured` attributes, a line for each of the `attributes` that was set alone."""

    attributes: tuple[str, ...]
    measured: tuple[str, ...]
    slope: tuple[tuple[float | None, ...], ...]


class CombinedSetting(Record):
    """Several attributes requested at once."""

    requested: Means
    measured: Means
    mean_absolute_gap: float | None
    n: int


class DialogueCurve(Record):
    """An attribute that changes to its other end in mid-conversation: from low to high, from high to low."""

    first: tuple[float, ...]
    second: tuple[float, ...]
    measured_second: tuple[float | None, ...]
    n: int


class Trust(Record):
    """The predictor against the truth."""

    n: int | None
    spearman: float | None
    mae: float | None
    slope: float | None


class TrustEverywhere(Trust):
    """The same over all answers, where nearly all have one true value."""

    ceiling: float | None
    """The Spearman of a perfect predictor."""


class JudgeMetrics(Trust):
    """Over the answers whose attribute was set."""

    everywhere: TrustEverywhere


class LengthMetrics(Record):
    """Does an attribute go with the answer's length?"""

    spearman_words: float | None
    partial_spearman: float | None
    """Among answers to the very same request."""


class WitnessCurve(Record):
    """One attribute that was varied, and what a witness measured in the answers."""

    requested: tuple[float, ...]
    measured: tuple[float | None, ...]
    """The mean at each requested value, in the unit of the witness."""
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    """The 95 % band of these means, over other questions."""
    n: int
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    """Of requested and measured, over all single answers, with its 95 % interval."""
    movement: Movement | None = None
    """From the lowest to the highest request."""


class WitnessMetrics(Record):
    """A measure of the answers' texts that knows nothing of the predictor."""

    meaning: str
    unit: str
    attribute: str | None
    """The attribute of the run that it should move with; None if there is none."""
    is_rater: bool
    """That attribute's labels were this very measure (annotate.raters): it shows obedience, not agreement."""
    curves: dict[str, WitnessCurve]
    """Attribute that was varied -> what the witness measured."""


class BaselineMetrics(StageMetrics):
    """Stages `compare/*/report`: another model that was asked the report's questions, at the report's settings."""

    meaning: str
    """What it is, in a few words."""
    policy: str
    """Its stage."""
    template: str
    """How it is told the requested values."""
    measured_by: str
    steering: dict[str, SteeringCurve]
    at_best_settings: Means
    witnesses: dict[str, WitnessMetrics] = {}
    counts: Counts


class PreferenceMetrics(StageMetrics):
    """Stage `compare/preference/report`: the policy with all attributes at best against the base's own answers."""

    questions: str
    """Where they come from."""
    policy: str
    """The policy's stage."""
    rated_by: str
    weights: dict[str, float]
    """Attribute -> its weight in the one score of an answer."""
    preferred: PairAccuracy
    """Share of the questions on which the policy's answer has the higher score, a tie counting half."""
    longer: PairAccuracy
    """Share on which it is longer: a score may only follow the length."""
    each_attribute: dict[str, PairAccuracy]
    """The share of higher values, attribute by attribute."""
    means: dict[str, Means]
    """`policy` and `base` -> attribute -> mean value, and `words`."""
    unscored: int
    pairs: str
    """URI of all pairs, a `data.compared.ComparedPair` a line."""
    counts: Counts


class GuidanceMetrics(Record):
    """The report's questions with every attribute varied alone, answered with one strength of guidance."""

    guidance: float
    slopes: Means
    """Attribute -> points measured per point requested."""
    slope: float | None
    """Mean over attributes."""
    spearman: float
    """Of requested and measured, mean over attributes."""
    gap: float | None
    """Mean |requested - measured| of the attribute that was varied, over single answers."""
    others_move: float | None
    """Mean absolute gap of the other attributes, mean over attributes."""
    distinct_2: float
    words: float
    quality: float | None
    """The predictor's own value of the leading attribute, all attributes requested at their best."""
    at_best: float | None
    """The same as the report measures it: exactly, where the truth is known."""
    tokens_per_s: float | None
    """Of one actor, without its start."""
    tokens_per_cpu_s: float | None
    """The same for a second of CPU time: on a CPU, what other work on the machine does not change."""
    answers: int
    cut_off: int


class RoundMeasures(PolicyMeasures):
    """The policy after a bootstrap round; round 0 is the one before the first."""

    round: int
    promoted: bool


class ReportMetrics(StageMetrics):
    """Stage `report`, and report.json."""

    policy: str
    """URI of the policy that was asked."""
    policy_stage: str
    """Its stage: the endpoint serves it, wherever the run lies by then."""
    measured_by: str
    raters: dict[str, str] = {}
    """Attribute -> who gave its labels, "predictor" or "text: words"; empty = the predictor gave all."""
    steering: dict[str, SteeringCurve]
    at_best_settings: Means
    requested_best: Means
    cross_talk: CrossTalk | None = None
    """None if no attribute was set alone."""
    combined: tuple[CombinedSetting, ...] = ()
    dialogue: dict[str, DialogueCurve] = {}
    length: dict[str, LengthMetrics] = {}
    judge: dict[str, JudgeMetrics] = {}
    """Where the truth is known."""
    judge_note: str = ""
    witnesses: dict[str, WitnessMetrics] = {}
    """Measures by others than the predictor (evaluate.witnesses)."""
    absent_witnesses: dict[str, str] = {}
    """Witness that could not be heard -> why."""
    rounds: tuple[RoundMeasures, ...] = ()
    guidance: tuple[GuidanceMetrics, ...] = ()
    """A line for each of evaluate.guidance."""
    counts: Counts = {}


class HeldOutGap(Record):
    """Combinations that no row had."""

    answers: int
    mean_absolute_gap: float
    requested: Means
    measured: Means


class ArmMetrics(StageMetrics):
    """One ablation arm with one seed."""

    policy: str
    tokens: int
    """That all of its trainings read."""
    quality: float | None
    """The leading attribute with all attributes at best."""
    gap_at_best: float | None
    at_best_settings: Means
    measured_by: str
    spearman: dict[str, float | None]
    mean_spearman: float | None
    mean_absolute_gap: float | None
    request_gap: float | None = None
    """Mean of |requested - measured| over all settings of one attribute or of all; None for plain fine-tuning, and in
    reports of older releases."""
    held_out: HeldOutGap | None
    intervals: dict[str, tuple[float | None, float | None]] = {}
    """`quality`, `mean_spearman` and, by its name, each attribute's Spearman -> its 95 % interval over questions."""
    drift: Drift


class SeedSpread(Record):
    """Over seeds."""

    mean: float
    sd: float


class AblationMetrics(StageMetrics):
    """Stage `ablation/report`."""

    seeds: int
    measured_by: str
    arms: dict[str, dict[str, SeedSpread | None]]
    """Arm -> column of the table -> mean and standard deviation."""
    spearman: dict[str, dict[str, SeedSpread | None]]
    """Arm -> attribute -> the same."""
    intervals: dict[str, dict[str, tuple[float | None, float | None]]] = {}
    """With one seed: arm -> metric -> its 95 % interval over questions."""


class AnswersMetrics(StageMetrics):
    """A benchmark's questions, answered."""

    answers: str
    """URI of the answer file, in FastChat's format."""
    benchmark_file: str = ""
    """The same answers as the benchmark's own program reads them (AlpacaEval, Arena-Hard); "" = FastChat's is it."""
    policy: str
    model_id: str
    requested: Means
    counts: Counts
    too_long: tuple[int | str, ...]
    """Questions with a turn that did not fit."""
