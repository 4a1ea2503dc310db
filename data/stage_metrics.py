"""What each stage of a run counts and measures: the records in its manifest, which report, endpoint and export read.

NaN is None in JSON, wherever a type allows it. Knows no stage's work and no file (`data.run_layout` does).
"""

from data.calibration import Calibration
from data.label_use import LabelUse
from data.quality_metrics import AttributeQuality, Counts, JudgedMetrics, PairMetrics
from data.rater_fit import RaterFit
from data.rater_metrics import JudgeSpending, RaterMetrics
from data.record import Record

Means = dict[str, float]
"""Attribute -> mean."""


class StageMetrics(Record):
    """The base of what a stage leaves."""


class RowsMetrics(StageMetrics):
    """Stage `rows`."""

    counts: dict[str, Counts]
    """Of each source: records read, rows kept, their answers, duplicates and, by reason, rejections. Merged are records
    that became one more rater of a row; several_raters are answers with more than one."""
    rows: int
    sources: tuple[str, ...] = ()
    """The names of sources that rows have: rows of ours keep the one they came with."""
    rater_spread: dict[str, Means] = {}
    """Of each source with several raters: their standard deviation on one answer, the mean over answers."""


class LossPoint(Record):
    """A point of a loss curve: the mean over all targets."""

    step: int
    loss: float
    learning_rate: float | None = None


class CheckpointMetrics(Record):
    """The checkpoints of a training, and what they cost."""

    written: int
    failed: int
    blocked_s: float
    """Seconds that the training waited for them."""
    upload_s: float
    """Seconds that their uploads took beside it."""


class HeadFit(Record):
    """Heads of one attribute that were fitted in closed form, and how they were chosen by cross-validation."""

    blocks: tuple[str, ...]
    """What they read: layer/reading."""
    penalty: float
    """Of the ridge regression, per example and standardized feature."""
    answers: int
    """Answers with a label of the attribute."""
    explained: float
    """Share of the labels' variance that the heads explain on answers of other groups than those they were fitted to;
    the best of all that was tried, so a little too kind."""


class TrainingMetrics(Record):
    """What a training came to, over all of its lives."""

    zero_stage: int
    num_workers: int
    steps: int
    epochs: float
    examples: int
    tokens: int
    packs_filled: float
    """Share of the packs' token budget that tokens took."""
    target_weight: float
    held_bytes: Counts | None
    """On a worker: weights, gradients, optimizer."""
    tokens_per_s: float
    train_seconds: float
    """Of steps, without validation and checkpoints."""
    peak_memory_bytes: int
    checkpoints: CheckpointMetrics
    saved_step: int
    """The step whose weights are saved: the best by validation loss, or the last."""
    validation_loss: float | None
    validations: tuple[LossPoint, ...]
    cpu_seconds: float = 0.0
    """Of the last life, over all workers, without building and validating."""
    precision: str = ""
    """Arithmetic of forward and backward, as set or chosen: bf16 or fp32; "" = by an older release."""
    losses: tuple[LossPoint, ...] = ()
    heads: dict[str, HeadFit] = {}
    """Of a predictor with heads on several layers: attribute -> what its heads read."""
    label_use: dict[str, LabelUse] = {}
    """Of a policy: attribute -> what its labels are worth on held-out answers."""

    def without_curve(self) -> "TrainingMetrics":
        """For a manifest: the curve stays in training.json."""
        return TrainingMetrics(**{name: value for name, value in self if name != "losses"})


class BaseMetrics(StageMetrics):
    """Stage `base`."""

    counts: Counts
    model: str | None = None
    """The named model; None = one that was made here."""
    num_parameters: int | None = None
    vocab_size: int | None = None
    training: TrainingMetrics | None = None
    """Of its pre-training."""


class PredictorMetrics(StageMetrics):
    """Stage `predictor`."""

    training: TrainingMetrics
    counts: Counts
    labels: dict[str, Counts]
    """Attribute -> labels that count (`valid`), that nobody gave (`missing`) and outside the scale (`out_of_range`)."""
    held_out: dict[str, AttributeQuality]
    """Attribute -> its errors on answers that the predictor did not train on."""
    calibration: Calibration
    quality: str
    """URI of the full metrics."""
    pairs: dict[str, PairMetrics]
    """Set of pairs -> how often the preferred answer scores higher."""


class AuditMetrics(Record):
    """The audit of a pass over rows."""

    files: int
    rows: int
    digest: str
    """Of all ids, in order."""


class PassMetrics(StageMetrics):
    """One pass of a pool of workers over rows."""

    rows: int
    rows_before: int
    """Done by an earlier start of the same pass."""
    seconds: float
    rows_per_s: float


class AnnotationMetrics(PassMetrics):
    """Stage `annotated` and `bootstrap-N/rated`."""

    counts: Counts
    predicted_mean: Means
    raters: dict[str, str] = {}
    """Attribute -> who gave its values, "predictor" or "text: words"; empty = the predictor gave all."""
    agreement: dict[str, dict[str, RaterMetrics]] = {}
    """Rater -> attribute -> its failures, and how far it agrees with people; empty = the predictor is the only one."""
    fits: dict[str, RaterFit] = {}
    """Attribute -> what brings its values onto people's scale, where a rater has `calibrate`."""
    judges: dict[str, JudgeSpending] = {}
    """Rater -> what its judge has taken in the run so far."""
    pack_fill: float
    """Share of the packs' token budget that tokens took."""
    audit: AuditMetrics


class SamplingMetrics(PassMetrics):
    """A pass that samples answers."""

    tokens: int
    cut_off: int
    """Answers that reached the limit of tokens."""
    actor_seconds: float = 0.0
    """Wall time of all batches together, without the start of the actors: `tokens` / `actor_seconds` is an actor's
    rate."""
    cpu_seconds: float = 0.0
    """Of all batches together, which other work on the machine hardly changes."""
    audit: AuditMetrics


class KlMetrics(Record):
    """KL(w'||b') of a round of SteerLM 2.0, in nats, mean over prompts: the policy's shares against the targets."""

    first: float
    """Mean of the first fifth of what the training logged."""
    last: float
    """Of the last fifth."""
    held_out: float | None
    """Of prompts that were not trained on, with the saved weights; None if there are none."""


class PolicyMetrics(StageMetrics):
    """Stage `policy` and `bootstrap-N/policy`."""

    training: TrainingMetrics
    counts: Counts
    kl: KlMetrics | None = None
    """Of a round of SteerLM 2.0."""


class Decision(StageMetrics):
    """Which policy a run goes on with after a bootstrap round."""

    promoted: bool
    fell: tuple[str, ...]
    """What fell by more than allowed; empty if promoted."""
    policy: str
    """The stage of the policy to go on with."""


class NotRun(Decision):
    """A stage of a round that does nothing, because the round before was not promoted."""

    not_run: tuple[str, ...]
    """What fell in that round."""


class SamplesMetrics(SamplingMetrics):
    """Stage `bootstrap-N/samples`."""

    combinations: tuple[dict[str, int], ...]
    """The attribute values that were requested."""
    counts: Counts


class Drift(Record):
    """What answers are like on the whole."""

    texts: int
    words: float
    distinct_1: float
    distinct_2: float
    requested: Means = {}
    predicted: Means = {}
    true: Means = {}
    """Where the truth is known."""


class GroupMetrics(Record):
    """The weights of a round of SteerLM 2.0."""

    prompts: int
    """With as many answers as all others."""
    kl: float
    """KL(w'||b') in nats before training, when the answers to a prompt share alike; mean over prompts."""
    effective: float
    """For how many answers to a prompt the weights stand, mean over prompts: 1 = one has all the weight."""


class SelectionMetrics(StageMetrics):
    """Stage `bootstrap-N/selected`."""

    counts: Counts
    """Samples, `kept`, and dropped ones by reason."""
    drift: Drift
    groups: GroupMetrics | None = None
    """Of a round of SteerLM 2.0."""


class PolicyMeasures(Record):
    """What a policy is worth when a promotion is decided."""

    mean_spearman: float
    spearman: dict[str, float | None]
    at_best_settings: Means
    leading_gap_at_best: float
    """Gap of the leading attribute's mean at best settings, in points of the scale; NaN if it was not measured."""
    measured_by: str
    drift: Drift
    best_drift: Drift
    """Of the answers at best settings."""


class PromotionMetrics(Decision):
    """Stage `bootstrap-N/promotion`: both policies, asked the same questions."""

    before: PolicyMeasures
    after: PolicyMeasures
    counts: Counts


class BenchmarkMetrics(StageMetrics):
    """Stage `benchmarks`: the predictor on public tests, by the name of the set."""

    weights: dict[str, float]
    pairs: dict[str, PairMetrics]
    judged: dict[str, JudgedMetrics]
