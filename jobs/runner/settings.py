"""What every step of SteerLM can be told, with its meaning, unit and default: predictor, annotation, policy, sampling, bootstrap, evaluation.

`jobs.runner.preset` puts them together. Knows no YAML (`cluster.settings.load` does).
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from actors.modeling.regressor import LossKind
from actors.training.examples import LabelSource
from actors.training.settings import LearnerSettings
from data.errors import UserError
from data.record import Record
from data.selection import SelectionSettings


class PairSource(Record):
    """Pairs of answers of which people preferred one, to see whether the predictor agrees; nothing is trained on them."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """What the figures call it."""
    uri: str
    """File, folder or glob of records with `chosen` and `rejected`: hh-rlhf text or message lists, or answers beside a `prompt`; RewardBench's `subset`."""
    limit: int = Field(0, ge=0)
    """At most so many pairs; 0 = all."""


class JudgedSource(Record):
    """Answers that a judge gave one number."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """What the figures call it."""
    uri: str
    """File, folder or glob of conversations (`messages`, or `prompt` and `response`) with a `score`; or FastChat's single judgements of MT-bench."""
    limit: int = Field(0, ge=0)
    """At most so many answers; 0 = all."""


class BenchmarkSettings(Record):
    """What `jobs.evaluate_predictor` holds a trained predictor against; nothing is trained again for it."""

    pairs: tuple[PairSource, ...] = ()
    """Preferences: accuracy on each set, on each of its subsets, and RewardBench's sections."""
    judged: tuple[JudgedSource, ...] = ()
    """Scores of a judge: rank correlation and correlation with each set."""
    weights: dict[str, float] = {}
    """Attribute -> weight in the one score of an answer; empty = predictor.pair_weights."""

    @model_validator(mode="after")
    def _names(self) -> "BenchmarkSettings":
        names = [*(source.name for source in self.pairs), *(source.name for source in self.judged)]
        if len(set(names)) < len(names):
            raise UserError(f"benchmarks has the names {', '.join(names)}; each set needs a name of its own")
        return self


class PredictorSettings(Record):
    """Step 1: the attribute predictor."""

    learner: LearnerSettings
    """How it is trained."""
    folds: int = Field(0, ge=0)
    """k > 1: also train k predictors, each without one k-th of the groups, and report their scores on what they never saw."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """With folds = 0: share of groups held out for the figures. With learner.validate_every: also the share of the other groups that picks the best step."""
    backbone: str | None = None
    """Model to start from, hub name, folder or URI: a decoder, or an encoder (BERT, RoBERTa, ModernBERT, ...); None = the base model."""
    attribute_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Attribute -> weight of its labels in the loss, over the sum of the weights of all labels of a step; 1 for those not named."""
    loss: LossKind = "squared"
    """What is averaged over the labels: squared errors (scores are the mean of what raters say), or absolute ones (the median: nearer to the truth
    where most raters are right, because ratings at the ends of a scale err to one side only)."""
    ridge_init: float = Field(0.0, ge=0)
    """Ridge penalty per example with which a decoder's heads are fitted to the frozen backbone before training; 0 = heads start at random. Not under ZeRO-3."""
    lm_loss_weight: float = Field(0.0, ge=0)
    """Weight of the losses of a language model (and of counts and of its own surprise at the answer), mean over tokens, beside the ratings' loss, mean
    over labels. What a small backbone knew before the ratings, it forgets without; needs a decoder with tied embeddings; 0 = off. Not under ZeRO-3."""
    warmup: LearnerSettings | None = None
    """Self-supervised training of the backbone on all rows, rated or not, before the ratings: it stays a language model and learns to keep count of the
    answer so far (length, sentences, lines, ...). For small decoders that start from next to nothing; None = none. Not under ZeRO-3."""
    pairs: tuple[PairSource, ...] = ()
    """Preferences to test the predictor on, each set by itself."""
    pair_weights: dict[str, float] = {}
    """Attribute -> weight in the one score that decides a pair; empty = +1/n where higher is better, -1/n where lower is, n being how many those are."""

    @model_validator(mode="after")
    def _pairs(self) -> "PredictorSettings":
        names = [source.name for source in self.pairs]
        if len(set(names)) < len(names):
            raise UserError(f"predictor.pairs has the names {', '.join(names)}; each set needs a name of its own")
        return self

    @model_validator(mode="after")
    def _whole_weights(self) -> "PredictorSettings":
        """What reads weights outside the engine's own forward cannot have them sharded."""
        asked = {
            "ridge_init": self.ridge_init and self.learner,
            "lm_loss_weight": self.lm_loss_weight and self.learner,
            "warmup": self.warmup,
        }
        for name, learner in asked.items():
            if learner and learner.zero_stage == 3:
                where = "predictor.warmup" if name == "warmup" else "predictor.learner"
                raise UserError(
                    f"predictor.{name} is set, but {where}.zero_stage is 3, where no worker holds whole weights; set that to 2 or less, or unset it"
                )
        return self

    @model_validator(mode="after")
    def _folds(self) -> "PredictorSettings":
        if self.folds == 1:
            raise UserError(
                "folds is 1: one fold would leave nothing to train on; set 0 (hold out validation_share) or at least 2"
            )
        return self


class WorkerPool(Record):
    """A pool of Ray Data actors that hold weights."""

    num_actors: int = Field(2, ge=1)
    """Actors of the pool; with min_actors, the most it grows to."""
    min_actors: int | None = Field(None, ge=1)
    """Actors the pool starts with and never falls below; None = a fixed pool of num_actors."""
    cpus_per_actor: float = Field(1, ge=0)
    """CPUs, and CPU threads, per actor."""
    gpus_per_actor: float = Field(0, ge=0)
    """GPUs per actor; a fraction shares one."""
    labels: dict[str, str] = {}
    """Only on nodes with these labels, e.g. {role: annotate} (`ray start --labels`, ray_cluster.yaml); empty = anywhere."""
    batch_rows: int = Field(256, ge=1)
    """Rows handed to an actor at a time, and done again after a crash; sorting and packing happen inside. Files are read in groups of 256."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the weights."""

    @model_validator(mode="after")
    def _bounds(self) -> "WorkerPool":
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise UserError(
                f"min_actors is {self.min_actors}, num_actors {self.num_actors}: a pool grows from the one to the other; raise num_actors"
            )
        return self


class AnnotateSettings(Record):
    """Step 2: mass annotation."""

    pool: WorkerPool = WorkerPool()
    """The actors that hold the predictor."""
    pack_tokens: int = Field(2048, ge=2)
    """Token budget of one packed forward."""
    max_tokens: int = Field(1024, ge=2)
    """Longer conversations are flagged `truncated` and counted; over_long says what becomes of them."""
    over_long: Literal["keep_end", "reject"] = "keep_end"
    """keep_end = the predictor reads the last max_tokens, answers before them stay unrated; reject = none of the row's answers is rated."""

    @model_validator(mode="after")
    def _fits(self) -> "AnnotateSettings":
        if self.max_tokens > self.pack_tokens:
            raise UserError(
                f"annotate.max_tokens {self.max_tokens} must not exceed annotate.pack_tokens {self.pack_tokens}"
            )
        return self


class PolicySettings(Record):
    """Step 3: attribute-conditioned SFT."""

    learner: LearnerSettings
    """How it is trained."""
    labels: LabelSource = "predicted"
    """Which values an answer is conditioned on; the paper's best are the predicted ones (arXiv 2310.05344, table 3). none = plain
    fine-tuning without label lines, which leaves nothing to steer."""
    calibrate: bool = True
    """Stretch predicted values to the spread of people's ratings (on rows the predictor never saw) before they become labels."""
    source_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Source -> how often an epoch has each of its rows: 2 = twice, 0.5 = half of them in one epoch and the others in the next; 1 for those not named."""
    attribute_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the answers of which some labels, from one to all, are hidden in training, so that callers may set only some."""
    validation_share: float = Field(0.02, ge=0, lt=1)
    """Share of groups held out to validate on."""


class SamplingSettings(Record):
    """How answers are sampled in bootstrap and evaluation."""

    pool: WorkerPool = WorkerPool(batch_rows=128)
    """The actors that hold the policy."""
    max_num_seqs: int = Field(32, ge=1)
    """Answers in flight per actor."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer."""
    temperature: float = Field(1.0, ge=0)
    """0 = greedy."""
    top_k: int = Field(50, ge=0)
    """50 is the paper's; 0 = off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1 = off."""


class BootstrapSettings(Record):
    """Step 4: sample at the best settings, rate, select, train again, and see whether it helped."""

    rounds: int = Field(1, ge=0)
    """Rounds; 0 = none. A round that makes things worse (max_steering_fall and so on) is not promoted, and is the last."""
    leading: str
    """The attribute that must be at its best in the combinations asked for."""
    leading_at_least: int | None = None
    """Take combinations from this value of `leading` on; None = only its best."""
    min_count: int = Field(1, ge=0)
    """How often a combination must have been seen in the annotated rows; 0 = ask for those too that were never seen, of values that were."""
    num_prompts: int = Field(500, ge=1)
    """Prompts per round, drawn from the annotated rows."""
    samples_per_prompt: int = Field(4, ge=1)
    """Answers per prompt, each at a combination of its own."""
    selection: SelectionSettings = SelectionSettings()
    """Which samples are trained on."""
    annotated_per_sample: float = Field(1.0, ge=0)
    """Annotated rows mixed in for each sample that is kept."""
    start: Literal["policy", "base"] = "policy"
    """Weights to start from: the last policy, or the base model."""
    learner: LearnerSettings
    """How the round trains."""
    num_questions: int = Field(8, ge=1)
    """Questions, other than the report's, that the policies before and after a round are asked at every setting, to judge the round."""
    max_steering_fall: float | None = Field(0.05, ge=0)
    """Largest fall of the Spearman correlation of asked and measured, mean over dials, with which a round is promoted; None = not asked."""
    max_quality_fall: float | None = Field(0.3, ge=0)
    """The same for the leading attribute with all dials at best: how much farther from its best it may come out, in points of the scale."""
    max_diversity_fall: float | None = Field(0.2, ge=0)
    """The same for distinct-2, the share of different pairs of words in the answers, as a share of what it was."""


class EvaluateSettings(Record):
    """The report: each dial turned over its scale, several at once, and in mid-conversation."""

    num_questions: int = Field(20, ge=1)
    """Questions asked at every setting."""
    num_combinations: int = Field(6, ge=0)
    """Settings of all dials at once, drawn from their scales, at which every question is asked too; 0 = none."""
    num_dialogues: int = Field(8, ge=0)
    """Questions whose answers at the ends of each dial are gone on with at the dial's other end, not more than there are; 0 = none."""
    num_resamples: int = Field(2000, ge=100)
    """Draws of the questions (bootstrap) that the 95 % bands of the means are taken from."""
    others: Literal["best", "unset"] = "best"
    """What is asked of the dials that are not turned: their best, or nothing, as by callers who set one dial alone (see policy.attribute_dropout)."""
    temperature: float = Field(0.3, ge=0)
    """Sampling temperature of the evaluation; the paper answers greedily (0), a little more shows what callers will see."""
