"""The type of a run: every setting of every stage, with its meaning, unit and default. Any job's `--help` prints them.

Knows no YAML (`cluster.settings.load` does).
"""

import re
from typing import Any, ClassVar

from pydantic import Field, model_validator

from actors.modeling.settings import SmallModel, TemplateKind
from actors.training.settings import LearnerSettings, Tracking
from cluster.events import LogFormat
from data.attributes import AttributeProblem, AttributeSchema, shipped
from data.bounds import Count, Parameters, PositiveShare, Seed, Share, Size, StoreMib, Workers
from data.errors import UserError
from data.iceberg import ICEBERG, NAME
from data.lab import LAB, LabSettings
from data.pairs import pair_weights
from data.printable import printable
from data.record import Record
from data.roster import Roster
from data.run_layout import FolderName
from data.scored_text import SCORED_TEXT, ScoredColumns
from data.selection import check_quantiles
from data.sources import require_format
from data.uris import KeptUri, Uri, shown_uri
from jobs.runner.bootstrap_settings import BootstrapSettings
from jobs.runner.evaluation_settings import BenchmarkSettings, CompareSettings, EvaluateSettings
from jobs.runner.predictor_settings import PredictorSettings
from jobs.runner.settings import (
    AnnotateSettings,
    PolicySettings,
    SamplingSettings,
)


class RaySettings(Record):
    """The local Ray. On a cluster (RAY_ADDRESS is set) the cluster's own sizes count instead."""

    num_cpus: Workers | None = None
    """Logical CPUs of the local Ray; None = all. May exceed the machine's. Ray Data stalls if actors leave less than
    one free."""
    object_store_mb: StoreMib | None = None
    """Shared-memory object store of the local Ray, MiB; None = Ray's default."""


class SourceSettings(Record):
    """One set of conversations to read."""

    LATER: ClassVar[frozenset[str]] = frozenset({"near_duplicates"})

    name: str
    """Written into every row's `source`."""
    format: str
    """A format of `data.sources`, "iceberg" for a table, or "lab" for the synthetic world."""
    uri: Uri = ""
    """File, folder or glob on any fsspec filesystem; of an Iceberg table catalog.namespace.table (needs pyiceberg, the
    extra `lake`, which finds the catalog in .pyiceberg.yaml or in the environment); empty for the synthetic world."""
    limit: Count = 0
    """Largest number of rows; 0 = all."""
    columns: ScoredColumns | None = None
    """For format "scored_text": where the file has texts and ratings."""
    near_duplicates: PositiveShare | None = None
    """Rows go that share so much of their groups of three words (Jaccard similarity, estimated by MinHash) with an
    earlier row of the source, such as 0.8; they are counted as near_duplicate. None = all stay."""

    @model_validator(mode="after")
    def _readable(self) -> "SourceSettings":
        require_format(self.format, ICEBERG, LAB)
        if (self.format == SCORED_TEXT) != bool(self.columns):
            needs = "needs" if self.format == SCORED_TEXT else "takes no"
            raise UserError(
                f"source {printable(self.name)!r} of format {self.format} {needs} columns: they say where a "
                "scored_text has its texts and ratings, such as {text: joke, attributes: {humor: {column: score}}}"
            )
        if not self.uri and self.format != LAB:
            raise UserError(f"source {self.name!r} of format {self.format} has no uri: name a file, a folder or a glob")
        if self.format == ICEBERG and not re.fullmatch(NAME, self.uri):
            raise UserError(
                f"source {printable(self.name)!r} of format {ICEBERG} has the uri {shown_uri(self.uri)}: write a "
                "table's name, catalog.namespace.table"
            )
        return self


class RowsSettings(Record):
    """The conversations of the run."""

    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"split_bytes", "num_tasks"})  # the rows are the same

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    """Rated and unrated ones alike: the predictor learns from the rated, all are annotated."""
    lab: LabSettings = LabSettings()
    """The synthetic world, for sources of format "lab"."""
    max_rejected: Share = 0.01
    """Share of rejected records above which the stage fails."""
    rows_per_file: Size = 2000
    """Rows in each Parquet file."""
    split_bytes: Size = 32 * 2**20
    """Bytes of the sources that one task reads: neighboring files, or a part of a large one. JSON lines are divided at
    lines, Parquet at row groups; other files are read as a whole. No more than this together is read without tasks."""
    num_tasks: Workers | None = None
    """Tasks that read at the same time; None = as many as the cluster has CPUs."""

    @model_validator(mode="after")
    def _unique(self) -> "RowsSettings":
        names = [source.name for source in self.sources]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise UserError(
                f"two sources are called {printable(twice)!r}, so their rows and counts could not be told apart; "
                "give each of rows.sources a name of its own"
            )
        return self


class BaseSettings(Record):
    """What predictor and policy start from."""

    model: Uri | None = None
    """A Hugging Face causal LM: hub name, folder or URI; a GGUF file of the machine that starts the run, or
    package:NAME for one inside an installed Python package (`make setup-real`). None = make `small`."""
    num_parameters: Parameters | None = None
    """Size of `model`, for --plan where the hub cannot be reached."""
    small: SmallModel = SmallModel()
    """The model to make if `model` is None."""
    texts: Uri = ""
    """JSON lines with `text` to train tokenizer and language model on; empty = the rows themselves, without labels."""
    text_limit: Count = 0
    """Largest number of texts; 0 = all."""
    pretrain: LearnerSettings | None = None
    """Language-model training of `small` on the texts; None = start from random weights."""

    @model_validator(mode="after")
    def _either(self) -> "BaseSettings":
        if self.model and (self.pretrain or self.texts):
            raise UserError(
                f"base.model is {self.model}, so base.pretrain and base.texts have no effect: "
                "they make the small model; remove them or base.model"
            )
        return self


class Preset(Record):
    """A run."""

    RENAMED = {
        "row_tokens": "pack_tokens",
        "rows_per_step": "packs_per_step",
        "max_slots": "engine.max_num_seqs",
        "max_num_seqs": "engine.max_num_seqs",
        "kv_cache_gib": "engine.kv_cache_gib",
        "prefix_tokens": "prefix_cache_tokens",
        "stay_language_model": "lm_loss_weight",
        "probe": "ridge_init",
        "measures": "raters",
        "cuts": "raters",
    }

    run: FolderName
    """Name; the run lives in {storage}/{run}/."""
    storage: KeptUri = "runs"
    """A folder or any fsspec URI (s3://bucket/prefix)."""
    attributes: str | AttributeSchema
    """Name of a shipped attribute schema, or one of your own."""
    template: TemplateKind = "steerlm"
    """Prompt format: the reference template; `chat`, the model's own chat template with the label line in it; or
    `words`, the same with the values as sentences at the end of the user's turn, for models that follow
    instructions."""
    seed: Seed = 0
    """Seed of sampling, selection and bootstrap plans."""
    ray: RaySettings = RaySettings()
    """The local Ray."""
    log: LogFormat = "text"
    """Format of the job's own log: text, or one JSON object per event. Actors always print text."""
    tracking: Tracking = "none"
    """Where training curves go, beside the console, Ray's metrics and TensorBoard's files: mlflow or wandb, which read
    their own environment variables."""
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
    compare: CompareSettings = CompareSettings()
    """Other models beside the policy."""
    benchmarks: BenchmarkSettings = BenchmarkSettings()
    """For `jobs.evaluate_predictor` alone."""

    @property
    def schema_(self) -> AttributeSchema:
        """The attribute schema, looked up if the preset names it."""
        return shipped(self.attributes) if isinstance(self.attributes, str) else self.attributes

    @property
    def roster(self) -> Roster:
        """Who rates what."""
        return self.annotate.roster(self.schema_)

    def model_post_init(self, _: Any) -> None:
        leading, least = self.schema_[self.bootstrap.leading], self.bootstrap.leading_at_least
        if least is not None and not leading.low <= least <= leading.high:
            raise UserError(
                f"bootstrap.leading_at_least is {least}, outside the scale of {leading.name}, "
                f"{leading.low} to {leading.high}"
            )
        others = {
            "base.pretrain": self.base.pretrain,
            "predictor.warmup": self.predictor.warmup,
            "policy.learner": self.policy.learner,
            "bootstrap.learner": self.bootstrap.learner,
        }
        for path, learner in others.items():
            if learner and learner.epochs == 0:
                raise UserError(f"{path}.epochs is 0, so nothing would be learned; set it to 1 or more")
        check_quantiles(self.bootstrap.selection.min_quantile, self.schema_)
        for source in self.rows.sources:
            if source.columns:
                source.columns.require_in(self.schema_)
        self.roster.require_fitting()
        self.roster.require_used_fits(*self.policy.uses_calibration)
        self._require_words()
        self._require_guidance()
        self.require_steerlm2()
        for name in self.predictor.attribute_weights:
            try:
                self.schema_[name]
            except AttributeProblem as problem:
                raise UserError(f"predictor.attribute_weights: {problem}") from None
        if self.predictor.pairs:
            self.pair_weights()
        if self.benchmarks.pairs or self.benchmarks.judged:
            self.benchmark_weights()

    def _require_words(self) -> None:
        """Raise UserError if models are to be compared that cannot be told anything in words."""
        wanted = [name for name in ("baselines", "questions") if getattr(self.compare, name)]
        if wanted and self.template != "words":
            raise UserError(
                f"compare.{wanted[0]} needs a base model that is told values in words, and template is "
                f"{self.template}; set template to words, or leave compare out"
            )
        if self.compare.questions:
            self.pair_weights()

    def _require_guidance(self) -> None:
        """Raise UserError for values to lead away from that the attributes do not have, or for too few places."""
        named = {"sampling": self.sampling.guidance_from, "evaluate": self.evaluate.guidance_from}
        for path, values in named.items():
            try:
                self.schema_.checked(values or {})
            except AttributeProblem as problem:
                raise UserError(f"{path}.guidance_from: {problem}") from None
        if self.evaluate.guidance not in (None, (1,)):
            self.sampling.require_guidable("evaluate.guidance is set")

    def require_steerlm2(self) -> None:
        """Raise UserError for a round of SteerLM 2.0 whose target or probabilities would mean nothing."""
        if self.bootstrap.method != "steerlm2" or not self.bootstrap.rounds:
            return
        settings = self.bootstrap.steerlm2
        try:
            self.schema_.checked(settings.target or {})
        except AttributeProblem as problem:
            raise UserError(f"bootstrap.steerlm2.target: {problem}") from None
        if settings.target == {}:
            raise UserError("bootstrap.steerlm2.target names no attribute; name one or more, or leave it out")
        if settings.unconditional == "policy" and not self.policy.attribute_dropout:
            raise UserError(
                "bootstrap.steerlm2.unconditional is policy, but policy.attribute_dropout is 0, so that the policy "
                "never saw a prompt without labels; set it to .1 or so, or unconditional to sft"
            )
        if self.sampling.guidance is not None:
            raise UserError(
                "bootstrap.method steerlm2 weighs answers by the policy's own probabilities, which guided answers do "
                "not have; leave sampling.guidance out"
            )

    def benchmark_weights(self) -> dict[str, float]:
        """The weight of every attribute in the one score of an answer in `jobs.evaluate_predictor`."""
        given, measured = self.benchmarks.weights or self.predictor.pair_weights, self.roster.unpredicted
        return pair_weights(self.schema_, given, "benchmarks.weights", measured)

    def pair_weights(self) -> dict[str, float]:
        """The weight of every attribute in the one score that decides a pair of predictor.pairs."""
        return pair_weights(self.schema_, self.predictor.pair_weights, unpredicted=self.roster.unpredicted)
