"""The settings of the endpoint, each with its reason. Knows no YAML and no command line (`cluster.settings.load`)."""

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from actors.generation.settings import ENDPOINT, EngineSettings, require_possible
from data.bounds import (
    FLOAT,
    Amount,
    ContextTokens,
    Count,
    Cpus,
    Gpus,
    Positive,
    PositiveSeconds,
    PositiveShare,
    Seconds,
    Size,
    Whole,
    Workers,
)
from data.errors import UserError
from data.record import Record
from data.uris import Uri
from serve.auth import KEYS_VARIABLE, Team
from serve.feedback_store import FeedbackSettings
from serve.live_store import LiveSettings
from serve.profiles import NAMES as PROFILES

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9._\[\]:-]+)$")]
ServedTemperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), FLOAT]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ModelName = Annotated[str, Field(pattern=NAME)]
LOOPBACK = ("127.0.0.1", "localhost")
FROM_THE_RUN, BASE = "run", "base"


class ServedModel(Record):
    """One of several policies that are served side by side."""

    name: ModelName
    """As callers write it in `model`."""
    policy: Uri
    """A policy folder, a finished run's folder, or "newest"."""
    weight: Amount = 1
    """Its share of the requests that name no model: 1 beside 19 is a canary of 5 %; 0 = only who names it gets it."""


class ServedEngineSettings(EngineSettings):
    """What writes the answers of the endpoint."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Weights and activations; float32 gives on a CPU what training measured. auto = bfloat16 where a replica's device
    multiplies it faster, else float32."""
    max_num_seqs: Workers = 16
    """Answers that a replica writes at the same time."""
    max_model_len: ContextTokens | None = 8192
    """Prompt and answer together, in tokens, where the model takes more: one long prompt must not use up the memory.
    None = what the model takes, and with vLLM no more than its memory holds of one answer."""
    prefix_cache_tokens: Count = 4096
    """Transformers only: prefix cache for prompts that begin alike, in tokens; 0 = none. vLLM has its own."""
    stream_every_s: PositiveSeconds = 0.1
    """A stream's first text is sent at once, the rest at most so often: a message for every token would take a core.
    With more than four streams in a replica proportionally less often, down to a fifth."""


class ScorerSettings(Record):
    """The attribute predictor that rates answers on request."""

    num_cpus: Cpus = 0.25
    """CPUs that Ray sets aside for it."""
    num_gpus: Gpus = 0
    """GPUs that Ray sets aside for it."""
    pack_tokens: Whole = Field(2048, ge=16, le=10**9)
    """Tokens of one packed forward."""
    max_tokens: Whole = Field(1024, ge=16, le=10**9)
    """Longest conversation that is read whole; of a longer one the end is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Weights and activations, heads always in float32; None = as engine.dtype. float32 gives on a CPU what the
    offline predictor gives in float32, where answers are written in bfloat16."""
    packing: Literal["on", "off"] = "on"
    """Several answers in one forward; off = one by one, for predictors that would mix them (which are refused
    otherwise)."""
    max_ongoing_requests: Workers = 64
    """Answers in its hands, waiting ones included."""
    max_queued_requests: Workers = 256
    """Answers that wait for it; one more is not rated: its request gets 503 `scorer_failed`."""
    timeout_s: PositiveSeconds = 30
    """How long rating an answer may take, waiting included; then its request gets 503 `scorer_failed`."""

    @model_validator(mode="after")
    def _fits(self) -> "ScorerSettings":
        if self.max_tokens > self.pack_tokens:
            raise UserError(f"max_tokens {self.max_tokens} must not exceed pack_tokens {self.pack_tokens}")
        return self


class IngressSettings(Record):
    """The processes that callers talk to."""

    min_replicas: Workers = 1
    """Of them, how many always run."""
    max_replicas: Workers = 1
    """At the busiest; teams' limits hold over all of them together."""
    target_ongoing_requests: Positive = 64
    """Requests per process above which another one is started."""

    @model_validator(mode="after")
    def _ordered(self) -> "IngressSettings":
        if self.max_replicas < self.min_replicas:
            raise UserError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}: raise it")
        return self


class ServeSettings(Record):
    """What `python -m serve` needs to know."""

    RENAMED = {
        "max_slots": "max_num_seqs",
        "prefix_tokens": "prefix_cache_tokens",
        "row_tokens": "pack_tokens",
        "gpu_memory_share": "memory_share",
        "max_context_tokens": "max_model_len",
    }

    policy: Uri = "newest"
    """A policy folder, a finished run's folder or an exported adapter's (any URI), or "newest": the newest finished run
    in `storage`; or package:NAME, a pretrained model out of an installed package, untrained and asked in words; or
    "base", the model that `adapters` were trained on, asked as they are."""
    storage: Uri = "runs"
    """Where runs live (any URI), for "newest"; what a package or an adapter gives is kept there, too."""
    attributes: str = "style"
    """For a package: the shipped attribute schema that it is asked in."""
    name: str | None = None
    """The `model` that callers name; None = the name of the run, or of the folder."""
    adapters: dict[ModelName, Uri] = {}
    """Exported adapters (`jobs.export what=adapter`) that were trained on `policy`, beside it in the same replicas: the
    `model` that callers name -> its folder (any URI)."""
    models: tuple[ServedModel, ...] = ()
    """Several policies side by side, instead of `policy` and `name`."""
    predictor: Uri | None = FROM_THE_RUN
    """Rates answers for `score` and `best_of`: a folder (any URI), "run" = the first policy's run's, null = none."""
    teams: tuple[Team, ...] = ()
    """Who may call; each key of `keys` belongs to one of them."""
    keys: Uri | None = None
    """File (any URI) with a line for each key, see `python -m serve.keys`; null = $STEERLM_KEYS, or no keys at all."""
    access_log: bool = True
    """Write one JSON line per request to the log? Its texts are never in it."""
    host: str = "127.0.0.1"
    """Address to listen on; without keys only this machine's own is allowed."""
    port: Whole = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """Path under which a proxy shows the endpoint, as /steer; whether or not the proxy takes it off."""
    cors_origins: tuple[Origin, ...] = ()
    """Sites whose pages may call from a browser, as https://chat.example; "*" = all, with keys only."""
    engine: ServedEngineSettings = ServedEngineSettings()
    """What writes the answers."""
    scorer: ScorerSettings = ScorerSettings()
    """What rates them."""
    ingress: IngressSettings = IngressSettings()
    """What speaks HTTP."""
    feedback: FeedbackSettings = FeedbackSettings()
    """People's ratings of answers."""
    live: LiveSettings = LiveSettings()
    """Requested against measured values in production."""
    min_replicas: Workers = 1
    """Copies of the policy that always run."""
    max_replicas: Workers = 1
    """Copies of the policy at the busiest."""
    target_ongoing_requests: Positive = 12
    """Requests per replica above which another replica is started; a little under engine.max_num_seqs."""
    upscale_delay_s: Seconds = 10
    """How long there must be too many requests before another replica is started, or another ingress."""
    downscale_delay_s: Seconds = 300
    """How long there must be too few before one is stopped."""
    drain_s: Seconds = 30
    """How long a replica that is to go may finish the answers it is writing."""
    num_cpus: Cpus = 0.5
    """CPUs that Ray sets aside for a replica; a share, so that a small machine has some left for Ray itself."""
    num_gpus: Gpus = 0
    """GPUs that Ray sets aside for a replica, those of all its stages together; 0 = it runs on the CPU."""
    memory_gib: Positive | None = None
    """Memory of a replica's GPU, for --plan alone, or of the CPU's what a replica may use, of which the transformers
    engine takes half for its KV cache; None = this machine's GPU, or a replica's share of its RAM."""
    threads: Workers = 1
    """CPU threads of torch in a replica; on shared cores more than one is slower, not faster."""
    temperature: ServedTemperature = 1.0
    """Of a request that names none: OpenAI's default is 1; small models need less. 0 = always the likeliest token."""
    top_p: PositiveShare = 1.0
    """Of a request that names none."""
    max_new_tokens: Size | None = None
    """Longest answer, in tokens, and that of a request that names none; a longer one is cut. None = what the prompt
    leaves of the context, and a quarter of the context where a request names none."""
    ignore_tools: bool = True
    """Take `tools` of a request to a model that cannot call any (tool_choice auto), and answer without them? Off = 400.
    A model whose own chat template has tools uses them either way."""
    max_ongoing_requests: Workers = 32
    """Requests in a replica, waiting ones included; twice engine.max_num_seqs keeps its batch full."""
    max_queued_requests: Workers = 64
    """Requests that wait for a replica; one more is turned away with 429."""
    retry_after_s: Size = 3
    """When a caller that was turned away should come back at the earliest; the more there are, the later each."""
    max_body_bytes: Size = 1 << 20
    """Longest request body; a longer one gets 413."""
    body_timeout_s: PositiveSeconds = 20
    """How long a request's body may take to arrive; a slower one gets 408."""
    max_open_bodies: Size = 256
    """Bodies of one team, and of one address, that arrive at the same time; one more ends the oldest, or gets 429."""
    max_messages: Size = 1024
    """Messages of one conversation; more get 400."""
    start_timeout_s: PositiveSeconds = 600
    """How long loading the policy may take."""
    object_store_bytes: Whole = Field(200 << 20, ge=80 << 20, le=10**12)
    """Ray's shared memory when a local Ray is started; the endpoint hardly uses it."""

    @model_validator(mode="after")
    def _consistent(self) -> "ServeSettings":
        if self.host not in LOOPBACK and not self.has_keys:
            remedy = "set teams and keys (`python -m serve.keys TEAM` makes one), or set host to 127.0.0.1"
            raise UserError(f"host is {self.host!r}, but without keys the endpoint is for this machine only: {remedy}")
        if "*" in self.cors_origins and not self.has_keys:
            remedy = "name the sites, or set teams and keys"
            raise UserError(f'cors_origins has "*", but without keys any page could use the endpoint: {remedy}')
        if self.max_replicas < self.min_replicas:
            raise UserError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}: raise it")
        if self.models and (self.policy != "newest" or self.name is not None):
            raise UserError("models lists what is served, so policy and name are not read: leave them out")
        if self.adapters and self.models:
            raise UserError("adapters are served beside one policy, and models lists several: set policy instead")
        if self.policy == BASE and not self.adapters:
            raise UserError("policy is base, the model that adapters were trained on, and there are none: set adapters")
        if self.adapters and self.engine.pipeline_parallel > 1:
            stages = f"engine.pipeline_parallel is {self.engine.pipeline_parallel}"
            why = "stages on other nodes do not have the files of adapters"
            raise UserError(f"{stages}, and {why}: leave adapters out, and serve each policy whole (models)")
        if self.models and not sum(model.weight for model in self.models):
            raise UserError("every model has weight 0, so a request that names none would get none: give one a weight")
        require_possible(self.engine, ENDPOINT, self.num_gpus, self.num_cpus, self.threads)
        _unique("models", [model.name for model in self.models])
        _unique("teams", [team.name for team in self.teams])
        for team in self.teams:
            for profile in team.profiles:
                if profile not in PROFILES:
                    raise UserError(f"team {team.name} has profile {profile!r}; there are {', '.join(PROFILES)}")
        self._check_feedback()
        return self

    def _check_feedback(self) -> None:
        """Raises UserError if texts could be kept that nobody may rate, or nothing is kept for who may."""
        gives = [team.name for team in self.teams if team.feedback]
        if gives and self.feedback.store is None:
            why = f"team {gives[0]} has feedback: true, but feedback.store is null"
            raise UserError(f"{why}: set it to a folder, or take feedback from the team")
        if self.feedback.store is not None and self.has_keys and not gives:
            why = "feedback.store is set, but no team may give feedback"
            raise UserError(f"{why}: give one feedback: true, or set feedback.store to null")
        if self.feedback.store is not None and self.feedback.store == self.live.store:
            why = "feedback.store and live.store are the same folder, and a run reads feedback as rows"
            raise UserError(f"{why}: set live.store to another one")

    @property
    def has_keys(self) -> bool:
        """Does every caller need a key?"""
        return self.keys is not None or bool(os.environ.get(KEYS_VARIABLE, "").strip())


def _unique(setting: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{setting} names {name!r} more than once: names are unique")
