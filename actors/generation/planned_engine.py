"""What an engine will hold of a device, and how many of the longest answers at a time, from a model's shape alone.

Arithmetic for plans: it starts no engine, and knows neither Ray nor where the numbers are printed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from actors.generation.kv_budget import FREE_SHARE, HOST_SHARE
from actors.generation.kv_cache import FREE_COLUMNS
from actors.generation.planned_split import MAX_STAGES, NODE_PARTS, divides, impossible, largest_stage
from actors.generation.settings import EngineKind, EnginePlace, EngineSettings
from actors.generation.vllm_start import CPU_CACHE_GIB
from actors.modeling.model_memory import (
    CPU_PROCESS,
    GIB,
    GPU_PROCESS,
    MAX_PARTS,
    cache_bytes,
    forward_bytes,
    in_gib,
    listed,
)
from actors.modeling.model_shape import ModelShape

PAGE = 16
"""Tokens that vLLM gives an answer memory for at a time."""
BATCHED_TOKENS = 8192
"""Of one forward of vLLM where `vllm.max_num_batched_tokens` sets none; its own default depends on the card."""
LOGITS_COPIES = 2
"""fp32 matrices of answers x vocabulary: logits, and what sampling makes of them."""
SHORTER_BY = 256
"""Steps in which a shorter context is proposed."""
HIGHEST_SHARE = 0.9
"""Of a GPU, that an engine may have as long as nothing else runs there; at the endpoint not in a swap."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one device: of each GPU of the process, or of the process itself on a CPU."""

    weights: float
    others: float
    """The process, a forward, logits."""
    held: Mapping[str, float]
    """What comes later and takes of the cache's room: a prefix cache, and what the process holds for other work."""
    answer: float
    """Keys and values of one answer at its longest, prompt included, in all its rows."""
    limit: float | None
    """What the engine may take; None = the device is not known."""
    cache: float | None
    """Room for keys and values; negative = not even the weights fit."""
    num_answers: int | None
    """The longest answers that are in flight at a time."""

    @property
    def fits(self) -> bool:
        return self.num_answers is None or self.num_answers > 0


@dataclass(frozen=True)
class PlannedEngine:
    """An engine that is to run in a process, and the process."""

    settings: EngineSettings
    place: EnginePlace
    dtype: str
    gpus: float
    """Set aside for the process; below 1 a share of one, 0 = it runs on the CPU."""
    tokens: int
    """Of the longest prompt and its answer."""
    device_bytes: float | None
    """Memory of one of its GPUs, or of the CPU's what the process may use; None = unknown here."""
    guided_by: str = ""
    """The setting that asks for guided answers; "" = none are."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """What the process holds for other work: name -> bytes."""
    apart: str = ""
    """How to have other processes hold that, for messages."""

    @property
    def kind(self) -> EngineKind | None:
        """None = vLLM if each process finds that it runs, else transformers."""
        if self.settings.wanted is None and not self.gpus:
            return "transformers"
        return self.settings.wanted

    @property
    def share(self) -> float:
        """Of a GPU, that vLLM takes."""
        return self.settings.memory_share or self.place.memory_share

    @property
    def rows(self) -> int:
        """Of the KV cache and of max_num_seqs, that an answer takes: a guided one has a second prompt."""
        return 2 if self.guided_by else 1

    def memory(self, shape: ModelShape) -> EngineMemory:
        """For a model of which only the size is known, no answer takes anything."""
        shape = largest_stage(shape, self.settings.pipeline_parallel)
        weights, others, held = self._weights(shape), self._others(shape), self._held(shape)
        cells = math.ceil(self.tokens / PAGE) * PAGE if self.kind != "transformers" else self.tokens + FREE_COLUMNS
        # Heads that are fewer than the parts are copied.
        parts = min(self.settings.tensor_parallel, shape.key_heads or 1)
        answer = cache_bytes(shape, self.rows, cells, self._cell_bytes) / parts
        if self.device_bytes is None:
            return EngineMemory(weights, others, held, answer, None, None, None)
        limit = self._limit(self.device_bytes)
        cache = self._cache(limit, weights + others, sum(held.values()))
        most = self.settings.max_num_seqs // self.rows
        num_answers = max(0, min(most, int(cache // answer))) if answer else most * (cache > 0)
        return EngineMemory(weights, others, held, answer, limit, cache, num_answers)

    def line(self, shape: ModelShape) -> str:
        """What runs where, and what it holds."""
        kind = {"vllm": "vLLM", None: "vLLM where it is installed and runs the model"}.get(self.kind, "transformers")
        share = f", which takes {self.share:.0%} of a GPU at most" if self.gpus and self.kind != "transformers" else ""
        other = ", else transformers" if self.kind is None else ""
        found = self.memory(shape)
        bound = "at most " if self._shrinks_unknown else ""
        beside = {"beside them": found.others, **found.held}
        if not shape.layers:
            cache = "KV cache unknown"
        elif found.cache is None or not found.fits:
            cache = f"KV cache of one {self._guided}answer of {self.tokens:,} tokens {in_gib(found.answer)}"
        else:
            each = f"each {self.rows} rows of" if self.guided_by else "of"
            cache = (
                f"KV cache {in_gib(found.cache)}: {found.num_answers} {self._guided}answers of {self.tokens:,} tokens "
                f"at a time, {each} max_num_seqs {self.settings.max_num_seqs}"
            )
        weights = f"weights {bound}{in_gib(found.weights)}"
        return f"{kind}{share}{other}; {self._devices}: {weights}, {listed(beside)}, {cache}"

    @property
    def _guided(self) -> str:
        return "guided " if self.guided_by else ""

    @property
    def _devices(self) -> str:
        own = self.settings
        if own.num_parts == 1:
            return "GiB each"
        stages = f" in {own.pipeline_parallel} stages of {own.tensor_parallel}" if own.pipeline_parallel > 1 else ""
        most = " at most" if stages else ""
        return f"split over {own.num_parts} {'GPUs' if self.gpus else 'processes'}{stages}, GiB in each{most}"

    def problem(self, shape: ModelShape) -> str:
        """Why the model, or one answer of it, does not fit, and the settings that help; "" = it fits."""
        if invalid := impossible(self.settings, self.place.setting, shape):
            return invalid
        found = self.memory(shape)
        if found.fits or self._shrinks_unknown:
            return ""
        assert found.limit is not None, "what fits is not known without a limit"
        where = "of each GPU's memory" if self.gpus else "of the machine's memory"
        fixed = {"kv_cache_gib": self.settings.kv_cache_gib * GIB} if self.settings.kv_cache_gib is not None else {}
        more = {**found.held, **fixed}
        need = found.weights + found.others + sum(more.values())
        beside = f"weights {in_gib(found.weights)} and {in_gib(found.others)} GiB beside them"
        beside += f", {listed(more)}" if more else ""
        if need > found.limit:
            what = f"needs {in_gib(need)} GiB ({beside}), and {in_gib(found.limit)} {where} are for it"
        else:
            what = (
                f"takes {in_gib(need)} GiB ({beside}) of the {in_gib(found.limit)} {where} that are for it, so one "
                f"{self._guided}answer of {self.tokens:,} tokens has no room for its KV cache of "
                f"{in_gib(found.answer)} GiB"
            )
        helps = (
            "; or ".join(self._remedies(shape)) or "nothing here: take a smaller model, or a device with more memory"
        )
        return f"{self.place.setting}: the policy {what}; what helps: {helps}"

    def _remedies(self, shape: ModelShape) -> Iterator[str]:
        """Each alone would do."""
        for text, other in self._others_tried(shape):
            if other.memory(shape).fits:
                yield text
        shorter = self.fitting_tokens(shape)
        if shorter > SHORTER_BY and replace(self, tokens=shorter).memory(shape).fits:
            yield f"{self.place.setting}.max_model_len: {shorter}"

    def fitting_tokens(self, shape: ModelShape) -> int:
        """About the longest prompt and answer that the memory holds of one; no more than `tokens`."""
        found = self.memory(shape)
        if found.cache is None or not found.answer:
            return self.tokens
        return min(self.tokens, max(0, int(found.cache / found.answer * self.tokens) // SHORTER_BY * SHORTER_BY))

    def _others_tried(self, shape: ModelShape) -> Iterator[tuple[str, "PlannedEngine"]]:
        own, setting = self.settings, self.place.setting
        if own.kv_cache_gib is not None:
            yield f"leave {setting}.kv_cache_gib out", replace(self, settings=_with(own, kv_cache_gib=None))
        if own.prefix_cache_tokens and self.kind == "transformers":
            yield f"{setting}.prefix_cache_tokens: 0", replace(self, settings=_with(own, prefix_cache_tokens=0))
        if self.guided_by:
            yield f"leave {self.guided_by} out", replace(self, guided_by="")
        if self.apart:
            yield self.apart, replace(self, beside={})
        if self.dtype == "float32":
            yield f"{self.place.dtype_setting}: bfloat16", replace(self, dtype="bfloat16")
        if self.gpus and own.wanted != "transformers":
            if self.share < HIGHEST_SHARE and self.gpus >= 1:
                whole = replace(self, settings=_with(own, memory_share=HIGHEST_SHARE))
                yield f"{setting}.memory_share: {HIGHEST_SHARE}", whole
            yield from self._splits_tried(shape)
            if own.quantization is None:
                yield f"{setting}.quantization: fp8", replace(self, settings=_with(own, quantization="fp8"))

    def _splits_tried(self, shape: ModelShape) -> Iterator[tuple[str, "PlannedEngine"]]:
        """Over the fewest GPUs of a node, and over several nodes where these are more than most nodes have."""
        own, setting = self.settings, self.place.setting
        more = range(own.tensor_parallel + 1, MAX_PARTS + 1)
        wider = next((n for n in more if divides(n, shape) and self._split(n).memory(shape).fits), None)
        if wider is not None:
            split = self._split(wider)
            yield f"{setting}.tensor_parallel: {wider} with {self.place.gpus_setting}: {split.gpus:g}", split
        if not self.place.spans_nodes or (wider is not None and wider <= NODE_PARTS):
            return
        parts = max(n for n in range(1, NODE_PARTS + 1) if divides(n, shape))
        for stages in range(own.pipeline_parallel + 1, min(MAX_STAGES, shape.layers or MAX_STAGES) + 1):
            split = self._split(parts, stages)
            if split.memory(shape).fits:
                stages_of = f"{setting}.pipeline_parallel: {stages} with {setting}.tensor_parallel: {parts}"
                yield f"{stages_of} and {self.place.gpus_setting}: {split.gpus:g}", split
                break

    def _split(self, parts: int, stages: int | None = None) -> "PlannedEngine":
        """`stages`: None = as many as now."""
        stages = stages or self.settings.pipeline_parallel
        own = _with(self.settings, tensor_parallel=parts, pipeline_parallel=stages)
        return replace(self, settings=own, gpus=float(own.num_parts))

    def _weights(self, shape: ModelShape) -> float:
        """Linear layers are split and made smaller; vLLM leaves embedding and output as they are, and splits them."""
        vocabulary = shape.vocabulary * shape.width
        linear = max(0, shape.cast - vocabulary) if self.settings.quantization == "fp8" else 0
        whole = (shape.num_parameters - linear) * self._width_bytes + linear
        return whole / self.settings.tensor_parallel

    def _others(self, shape: ModelShape) -> float:
        if not self.gpus:
            return CPU_PROCESS
        if self.kind == "transformers":
            return GPU_PROCESS
        given = self.settings.vllm.get("max_num_batched_tokens")
        batched = given if isinstance(given, int) and given > 0 else BATCHED_TOKENS  # vLLM refuses others by name
        logits = LOGITS_COPIES * 4 * self.settings.max_num_seqs * shape.vocabulary
        return GPU_PROCESS + forward_bytes(shape, batched, self._width_bytes) + logits

    def _held(self, shape: ModelShape) -> dict[str, float]:
        tokens = self.settings.prefix_cache_tokens if self.kind == "transformers" else 0  # vLLM's is within its cache
        prefixes = cache_bytes(shape, 1, tokens, self._cell_bytes)
        return {**({f"prefix cache of {tokens:,} tokens": prefixes} if prefixes else {}), **self.beside}

    def _limit(self, device: float) -> float:
        if not self.gpus:
            return device
        if self.kind == "transformers" or self.settings.kv_cache_gib is not None:
            return device * min(1.0, self.gpus)
        return device * self.share

    def _cache(self, limit: float, taken: float, later: float) -> float:
        """Room for keys and values; no more than what is there. `later`: what is taken once the room was chosen."""
        free = limit - taken - later
        if self.settings.kv_cache_gib is not None:
            wanted = self.settings.kv_cache_gib * GIB
            return wanted if wanted <= free else -1.0
        if self.kind != "transformers":
            return free if self.gpus else min(free, CPU_CACHE_GIB * GIB)
        return min(free, (limit - taken) * FREE_SHARE if self.gpus else limit * HOST_SHARE)

    @property
    def _width_bytes(self) -> int:
        half = self.dtype in ("bfloat16", "float16") or (self.dtype == "auto" and self.gpus > 0)
        return 2 if half else 4

    @property
    def _cell_bytes(self) -> int:
        return 1 if (self.settings.kv_cache_dtype or "").startswith("fp8") else self._width_bytes

    @property
    def _shrinks_unknown(self) -> bool:
        """Are the weights made smaller in a way that is not known here?"""
        return self.settings.quantization not in (None, "fp8")


def _with(settings: EngineSettings, **changed: object) -> EngineSettings:
    return settings.model_copy(update=changed)
