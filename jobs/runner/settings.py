"""The settings of every step of SteerLM, each with its meaning, unit and default.

`jobs.runner.preset` collects them. Knows no YAML (`cluster.settings.load` does).
"""

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from actors.generation.settings import EngineSettings, require_possible, require_possible_parts, sampling_place
from actors.training.settings import LabelSource, LearnerSettings
from cluster.preflight import Demand
from data.attributes import AttributeSchema
from data.bounds import (
    Count,
    Cpus,
    Gpus,
    Guidance,
    Positive,
    PositiveShare,
    RowFactor,
    Share,
    ShareBelowOne,
    Size,
    Temperature,
    TokenBudget,
    Weight,
    Workers,
)
from data.errors import UserError
from data.rater_settings import MergeRule, RaterSettings
from data.record import Record
from data.roster import Roster


class WorkerPool(Record):
    """A pool of Ray Data actors that hold weights."""

    num_actors: Workers = 2
    """Actors of the pool; with min_actors, its largest size."""
    min_actors: Workers | None = None
    """Smallest size of the pool, and its first; None = a fixed pool of num_actors."""
    cpus_per_actor: Cpus = 1
    """CPUs, and CPU threads, per actor."""
    gpus_per_actor: Gpus = 0
    """GPUs per actor; a fraction shares one."""
    memory_gib: Positive | None = None
    """Memory of an actor's GPU, or of the CPU's what an actor may use, for --plan and the check that the model fits; on
    a CPU the transformers engine takes half for its KV cache. None = this machine's GPU, or an actor's share of its
    RAM."""
    labels: dict[str, str] = {}
    """Only nodes with these labels, e.g. {role: annotate} (`ray start --labels`, ray_cluster.yaml); empty = any."""
    batch_rows: Size = 256
    """Rows that an actor takes at a time, sorts and packs; a crash repeats at most these. Files are read in groups of
    256 rows."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the weights. auto = bfloat16 where an actor's device multiplies it faster, else float32: each actor
    measures, so actors on different CPUs may differ; set one where every row must get the same numbers."""

    def demand(self, what: str, setting: str, num_shards: int | None = None) -> Demand:
        """What the pool takes of a cluster if there are `num_shards` to do. `setting`: its path in a preset."""
        most = self.num_actors if num_shards is None else min(self.num_actors, num_shards)
        least = min(self.min_actors or most, most)
        return Demand(what, least, most, self.cpus_per_actor, self.gpus_per_actor, setting, labels=self.labels)

    @model_validator(mode="after")
    def _bounds(self) -> "WorkerPool":
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise UserError(
                f"min_actors {self.min_actors} is above num_actors {self.num_actors}; "
                "a pool grows from min_actors to num_actors: raise num_actors"
            )
        return self


class AnnotateSettings(Record):
    """Step 2: mass annotation."""

    # Packing and parts change only rounding in the result, and the limit on failures nothing.
    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"packing", "max_failed", "tensor_parallel"})

    pool: WorkerPool = WorkerPool()
    """The actors that hold the predictor."""
    pack_tokens: TokenBudget = 2048
    """Token budget of one packed forward."""
    max_tokens: TokenBudget = 1024
    """Longer conversations are marked `truncated`, counted and treated as over_long requires."""
    over_long: Literal["keep_end", "reject"] = "keep_end"
    """keep_end = the predictor reads the last max_tokens, and earlier answers stay unrated; reject = all answers of the
    row stay unrated."""
    packing: Literal["on", "off"] = "on"
    """Several conversations in one forward; off = one by one, slower, for models that would mix them."""
    tensor_parallel: Workers = 1
    """Parts that every layer of the predictor is split into, for one that is larger than one GPU; each has a GPU of the
    same node, so the actor reserves as many. It must divide the attention heads. On CPUs each part is a process."""
    raters: tuple[RaterSettings, ...] = ()
    """Other raters and the attributes that each gives; an attribute that none of them gives is the predictor's. kind:
    text = measures of the text; hf = a reward model or classifier; python = a function; judge = a model that is told a
    principle; predictor = the run's own, beside others."""
    merge: MergeRule = "mean"
    """One value from several raters of an attribute: mean = by weight, of those that have a value; first = of the first
    in the list that has one."""
    max_failed: Share = 0.05
    """Share of the answers that a rater may fail to rate (a judge that is down, refuses or is not understood; a
    function that raises). Above it the stage ends with an error; the same command asks again for what failed."""

    def roster(self, schema: AttributeSchema) -> Roster:
        """Who rates what."""
        return Roster(self.raters, self.merge, schema)

    @model_validator(mode="after")
    def _fits(self) -> "AnnotateSettings":
        if self.max_tokens > self.pack_tokens:
            raise UserError(
                f"annotate.max_tokens {self.max_tokens} must not exceed annotate.pack_tokens {self.pack_tokens}"
            )
        option, who = "annotate.tensor_parallel", "the predictor"
        places = ("annotate.pool.gpus_per_actor", "annotate.pool.cpus_per_actor")
        pool = self.pool
        require_possible_parts(self.tensor_parallel, option, who, places, pool.gpus_per_actor, pool.cpus_per_actor)
        return self


class PolicySettings(Record):
    """Step 3: attribute-conditioned SFT."""

    learner: LearnerSettings
    """How it is trained."""
    labels: LabelSource = "predicted"
    """Values that an answer is conditioned on; predicted ones are best in the paper (arXiv 2310.05344, table 3). none =
    plain fine-tuning without label lines: the model cannot be steered."""
    calibrate: bool = True
    """Stretch predicted values to the spread of human ratings (measured on held-out rows) before they become labels."""
    spread_labels: bool = False
    """Instead, spread them over the whole scale by their rank among the annotated answers, so that each label is as
    common as any other; then 4 means "among the highest fifth", in training, evaluation and the endpoint's `measured`.
    For real rows, whose predictions cluster in the middle of the scale."""
    source_weights: dict[str, RowFactor] = {}
    """Source -> how often an epoch has each of its rows: 2 = twice, 0.5 = half of the rows in one epoch, the other half
    in the next; 1 for all other sources."""
    attribute_dropout: ShareBelowOne = 0.0
    """Share of the answers of which one to all labels are hidden in training, so that callers may set only some."""
    validation_share: ShareBelowOne = 0.02
    """Share of groups held out for validation."""
    label_probes: Count = 100
    """Held-out conversations on which a trained policy shows which labels it reads: its loss with labels of other
    answers, against that with their own; 0 = none."""

    @model_validator(mode="after")
    def _one_scale(self) -> "PolicySettings":
        if self.spread_labels and self.labels != "predicted":
            raise UserError(
                f"policy.spread_labels spreads predicted values, and policy.labels is {self.labels}: labels of people "
                "would stand on another scale; set labels to predicted, or spread_labels to false"
            )
        return self

    @property
    def uses_calibration(self) -> tuple[bool, str]:
        """Do labels depend on how raters are calibrated? If not, why."""
        why = "policy.spread_labels gives labels by rank" if self.spread_labels else "policy.calibrate is false"
        return self.calibrate and not self.spread_labels, why


class SamplingSettings(Record):
    """How answers are sampled in bootstrap and evaluation."""

    LATER: ClassVar[frozenset[str]] = frozenset({"guidance", "guidance_from"})

    pool: WorkerPool = WorkerPool(batch_rows=128)
    """The actors that hold the policy."""
    engine: EngineSettings = EngineSettings()
    """What writes the text in each of them."""
    max_tokens: Size = 256
    """Longest answer."""
    temperature: Temperature = 1.0
    """0 = greedy."""
    top_k: Count = 50
    """Sample from the k most likely tokens; 50 as in the paper, 0 = off."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling; 1 = off."""
    guidance: Guidance | None = None
    """Classifier-free guidance: how far to go from the answer without attributes towards the requested ones, and
    beyond, at twice the cost of an answer. None = off, as is 1; see evaluate.guidance."""
    guidance_from: dict[str, Weight] | None = None
    """With guidance: values that answers are led away from, all others as requested. None = an answer without
    attributes, which a policy only knows from policy.attribute_dropout."""

    @field_validator("guidance")
    @classmethod
    def _off(cls, guidance: float | None) -> float | None:
        return None if guidance == 1 else guidance

    @model_validator(mode="after")
    def _guided(self) -> "SamplingSettings":
        if self.guidance is not None:
            self.require_guidable(f"sampling.guidance is {self.guidance:g}")
        if self.guidance_from and self.guidance is None:
            raise UserError("sampling.guidance_from has no effect without sampling.guidance; set both, or leave it out")
        return self

    @model_validator(mode="after")
    def _possible(self) -> "SamplingSettings":
        gpus = self.pool.gpus_per_actor
        require_possible(self.engine, sampling_place(gpus), gpus, self.pool.cpus_per_actor)
        return self

    def engine_for(self, guidance: float | None) -> EngineSettings:
        """The settings of the engine that writes answers with this guidance: `auto` takes the one that can."""
        if guidance in (None, 1) or self.engine.kind != "auto":
            return self.engine
        return self.engine.model_copy(update={"kind": "transformers"})

    def require_guidable(self, wanted: str) -> None:
        """Raises UserError if the engine cannot write guided answers, which `wanted` asks for."""
        if self.engine.max_num_seqs < 2:
            raise UserError(
                f"{wanted}, and a guided answer takes the places of two, but sampling.engine.max_num_seqs is "
                f"{self.engine.max_num_seqs}; raise it, or leave guidance out"
            )
        if self.engine.wanted == "vllm":
            option = "kind" if self.engine.kind == "vllm" else self.engine.deciding("vllm")
            raise UserError(
                f"{wanted}, which needs the transformers engine, but sampling.engine.{option} asks for vLLM; leave one "
                "of them out"
            )
