"""vLLM's engine with its core in a process of its own: started, woken, watched and ended. Knows no request.

vLLM schedules and runs its forwards there, under an interpreter of their own: they wait neither for HTTP nor for
tokenizing. If that process dies, whoever waits for tokens is told. If ours does, that one ends, too.
"""

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import wait
from typing import Any

from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from actors.kernels.exit_code import ended

SETTLE_S = 1.0
"""Of a core that was killed, vLLM's own client may know a moment before we do."""
DOWN = "vLLM's engine core is down"


class VllmProcess:
    """One engine and the process of its core."""

    def __init__(self, config: Any):
        """`config`: vLLM's own. The process has ended again if this raises."""
        executor = ENDING_WITH_PARENT[Executor.get_class(config)]
        self.engine = LLMEngine(config, executor, log_stats=False, multiprocess_mode=True)
        self.engine.get_supported_tasks()  # it keeps them: the first request would wait for ever for a core that died
        self._core = self.engine.engine_core
        [self._process] = self._core.resources.engine_manager.processes
        self._failure = ""
        self._watching = threading.Thread(target=self._watch, name="vllm process", daemon=True)
        self._watching.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wake(self) -> None:
        """Let the step that waits for tokens return without any; from any thread."""
        self._core.outputs_queue.put(EngineCoreOutputs())

    def failure(self) -> str:
        """Why the core is down; "" while it runs."""
        if not self._core.resources.engine_dead:
            return self._failure
        self._watching.join(SETTLE_S)
        return self._failure or f"{DOWN}: it failed, and the log above says why"

    def close(self) -> None:
        """End the process and those of its parts, which hold their GPUs until then."""
        self._core.shutdown()

    def _watch(self) -> None:
        """vLLM's own client would wait for ever for the tokens of a core that was killed."""
        wait([self._process.sentinel])
        while (code := self._process.exitcode) is None:  # its pipe is closed a moment before
            time.sleep(0.01)
        self._failure = f"{DOWN}: {ended(code)}; the log above may say more"
        self._core.outputs_queue.put(RuntimeError(self._failure))


class ModelEndingWithParent(UniProcExecutor):
    """The model, in the core's process."""

    def _init_executor(self) -> None:
        _end_with_parent()
        super()._init_executor()


class PartsEndingWithParent(MultiprocExecutor):
    """Parts of a model in processes of their own, which vLLM ends with the core's."""

    def _init_executor(self) -> None:
        _end_with_parent()
        super()._init_executor()


class StagesEndingWithParent(RayExecutorV2):
    """Parts of a model in actors of Ray, which Ray ends with the core that started them."""

    def _init_executor(self) -> None:
        _end_with_parent()
        super()._init_executor()


ENDING_WITH_PARENT: dict[type[Executor], type[Executor]] = {
    UniProcExecutor: ModelEndingWithParent,
    MultiprocExecutor: PartsEndingWithParent,
    RayExecutorV2: StagesEndingWithParent,
}
"""vLLM's own -> ours. Each is a class with a name, as a new process can only find one by its name."""


def _end_with_parent() -> None:
    """vLLM's core has nothing that ends it with the process that started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "an executor runs in the core's process"

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, name="end with parent", daemon=True).start()
