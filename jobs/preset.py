"""The type of a run: every setting of every stage, with its meaning, unit and default. Knows no YAML (`cluster.settings` does).

`--help` of any job prints this file's records as a list.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from actors.base import SmallModel
from actors.examples import LabelSource
from actors.learner import LearnerSettings
from actors.tokenizer import TemplateKind
from data.attributes import AttributeSchema, shipped
from data.lab import LabSettings
from data.record import Record


class RaySettings(Record):
    """How we meet Ray. On a cluster (RAY_ADDRESS set) only the cluster's own sizes count."""

    num_cpus: int | None = None
    """Logical CPUs of the local Ray; None = all. More than the machine has is fine: actors that leave less than one free stall Ray Data."""
    object_store_mb: int | None = None
    """Shared-memory object store of the local Ray in MiB; None = Ray's default."""


class SourceSettings(Record):
    """One set of conversations to read."""

    name: str
    """Written into every row's `source`."""
    format: str
    """A format of `data.sources`, or "lab" for the laboratory world."""
    uri: str = ""
    """File, folder or glob on any fsspec filesystem; empty for the laboratory."""
    limit: int = Field(0, ge=0)
    """At most so many rows; 0 = all."""


class RowsSettings(Record):
    """Which conversations the run is about."""

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    """Rated and unrated ones alike: the predictor learns from the rated, all are annotated."""
    lab: LabSettings = LabSettings()
    """The laboratory world, for sources of format "lab"."""
    max_rejected: float = Field(0.01, ge=0, le=1)
    """Share of rejected records above which the stage fails."""
    rows_per_file: int = Field(2000, ge=1)
    """Rows in each Parquet file."""


class BaseSettings(Record):
    """What predictor and policy start from."""

    model: str | None = None
    """A Hugging Face causal LM: hub name, folder or URI. None = make `small`."""
    num_parameters: int | None = None
    """Size of `model`, for --plan where the hub cannot be reached."""
    small: SmallModel = SmallModel()
    """The model to make if `model` is None."""
    texts: str = ""
    """JSON lines with `text` to train tokenizer and language model on; empty = the rows themselves, without labels."""
    text_limit: int = Field(0, ge=0)
    """At most so many texts; 0 = all."""
    pretrain: LearnerSettings | None = None
    """Language-model training of `small` on the texts; None = start from random weights."""

    @model_validator(mode="after")
    def _either(self) -> "BaseSettings":
        if self.model and (self.pretrain or self.texts):
            raise ValueError(
                f"base.model is {self.model}, so base.pretrain and base.texts would be ignored: they make the small model; remove them or base.model"
            )
        return self


class PredictorSettings(Record):
    """Step 1: the attribute predictor."""

    learner: LearnerSettings
    """How it is trained."""
    folds: int = Field(0, ge=0)
    """k > 1: also train k predictors, each without one k-th of the groups, and report their scores on what they never saw."""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """With folds = 0: share of groups held out to validate on."""

    @model_validator(mode="after")
    def _folds(self) -> "PredictorSettings":
        if self.folds == 1:
            raise ValueError("folds is 1: one fold would leave nothing to train on; set 0 (hold out validation_share) or at least 2")
        return self


class WorkerPool(Record):
    """A pool of Ray Data actors that hold weights."""

    num_actors: int = Field(2, ge=1)
    """Actors of the pool."""
    cpus_per_actor: float = Field(1, ge=0)
    """CPUs, and CPU threads, per actor."""
    gpus_per_actor: float = Field(0, ge=0)
    """GPUs per actor; a fraction shares one."""
    batch_rows: int = Field(256, ge=1)
    """Rows handed to an actor at a time; sorting and packing happen inside."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the weights."""


class AnnotateSettings(Record):
    """Step 2: mass annotation."""

    pool: WorkerPool = WorkerPool()
    """The actors that hold the predictor."""
    row_tokens: int = Field(2048, ge=2)
    """Token budget of one packed forward."""
    max_tokens: int = Field(1024, ge=2)
    """Longer conversations keep their end and are flagged `truncated`."""

    @model_validator(mode="after")
    def _fits(self) -> "AnnotateSettings":
        if self.max_tokens > self.row_tokens:
            raise ValueError(f"annotate.max_tokens {self.max_tokens} must not exceed annotate.row_tokens {self.row_tokens}")
        return self


class PolicySettings(Record):
    """Step 3: attribute-conditioned SFT."""

    learner: LearnerSettings
    """How it is trained."""
    labels: LabelSource = "predicted"
    """Which values an answer is conditioned on; the paper's best are the predicted ones (arXiv 2310.05344, table 3)."""
    calibrate: bool = True
    """Stretch predicted values to the spread of people's ratings (on rows the predictor never saw) before they become labels."""
    attribute_dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that a label is hidden in training, so that callers may set only some."""
    validation_share: float = Field(0.02, ge=0, lt=1)
    """Share of groups held out to validate on."""


class SamplingSettings(Record):
    """How answers are sampled in bootstrap and evaluation."""

    pool: WorkerPool = WorkerPool(batch_rows=128)
    """The actors that hold the policy."""
    max_slots: int = Field(32, ge=1)
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
    """Step 4: sample at the best settings, rate, train again."""

    rounds: int = Field(1, ge=0)
    """Rounds; 0 = none."""
    leading: str
    """The attribute that must be at its best in the combinations asked for."""
    leading_at_least: int | None = None
    """Take combinations from this value of `leading` on; None = only its best."""
    min_count: int = Field(1, ge=1)
    """How often a combination must have been seen in the annotated rows."""
    num_prompts: int = Field(500, ge=1)
    """Prompts per round, drawn from the annotated rows."""
    samples_per_prompt: int = Field(4, ge=1)
    """Answers per prompt, each at a combination of its own."""
    annotated_per_sample: float = Field(1.0, ge=0)
    """Annotated rows mixed in for each sample."""
    start: Literal["policy", "base"] = "policy"
    """Weights to start from: the last policy, or the base model."""
    learner: LearnerSettings
    """How the round trains."""


class EvaluateSettings(Record):
    """The steering table: each dial turned over its scale, the others at best."""

    num_questions: int = Field(20, ge=1)
    """Questions asked at every setting."""
    temperature: float = Field(0.3, ge=0)
    """Sampling temperature of the evaluation; the paper answers greedily (0), a little more shows what callers will see."""


class Preset(Record):
    """A run."""

    run: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name; the run lives in {storage}/{run}/."""
    storage: str = "runs"
    """A folder or any fsspec URI (s3://bucket/prefix)."""
    attributes: str | AttributeSchema
    """Name of a shipped attribute schema, or one of your own."""
    template: TemplateKind = "steerlm"
    """Prompt format: the reference template, or the model's own chat template with the label line in it."""
    seed: int = 0
    """Seed of sampling, selection and bootstrap plans."""
    ray: RaySettings = RaySettings()
    """The local Ray."""
    rows: RowsSettings
    """What is read."""
    base: BaseSettings = BaseSettings()
    """What both models start from."""
    predictor: PredictorSettings
    """Step 1."""
    annotate: AnnotateSettings = AnnotateSettings()
    """Step 2."""
    policy: PolicySettings
    """Step 3."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are sampled."""
    bootstrap: BootstrapSettings
    """Step 4."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The steering table."""

    @property
    def schema_(self) -> AttributeSchema:
        """The attribute schema, looked up if it was named."""
        return shipped(self.attributes) if isinstance(self.attributes, str) else self.attributes

    def model_post_init(self, _: Any) -> None:
        self.schema_[self.bootstrap.leading]
