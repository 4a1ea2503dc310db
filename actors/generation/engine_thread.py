"""What both engines are: one thread that holds the weights, an inbox that any thread may fill, and how all who wait are told when it ends.

Knows no model. A subclass says how requests are admitted, stepped and aborted (`actors.generation.transformers_engine`, `actors.generation.vllm_engine`).
"""

import itertools
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from actors.generation.protocol import Listener, Load, Sampling, GenerationStep, require_fit


@dataclass
class Request:
    """What was submitted, and whether it is over."""

    number: int
    prompt_ids: Sequence[int]
    sampling: Sampling
    listener: Listener
    finish: str | None = None
    """As its listener was told; None while it waits or runs."""

    def emit(self, token_ids: list[int], finish: str | None) -> None:
        """Tell the listener. One that fails ends its own request, never the engine."""
        self.finish = finish
        try:
            self.listener(GenerationStep(token_ids, finish))
        except Exception:
            self.finish = "cancelled"


class EngineThread(ABC):
    """The engine contract's outer half; see `actors.generation.protocol.Engine` for what each method promises."""

    def __init__(self, name: str, context: int):
        """`context`: tokens that prompt and answer may have together. The subclass calls `start` when it is ready to step."""
        self._context = context
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._cancelled: set[int] = set()
        self._closed = False
        self._error: str | None = None
        self._generated_tokens = self._prefilled_tokens = self._reused_tokens = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def load(self) -> Load:
        # A request that ended keeps its place until the step is over, though its listener has heard already.
        running = sum(request.finish is None for request in self._running())
        return Load(running, len(self._inbox), self._generated_tokens, self._prefilled_tokens, self._reused_tokens)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        return self.submit_all([(prompt_ids, sampling, listener)])[0]

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        for prompt_ids, sampling, _ in requests:
            require_fit(prompt_ids, sampling, self._context)
        with self._wake:  # the thread sees none of them, or all
            if self._error or self._closed:
                raise RuntimeError(f"the engine is down: {self._error or 'closed'}")
            new = [Request(next(self._numbers), *request) for request in requests]
            self._inbox += new
            self._wake.notify()
        return [request.number for request in new]

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
                self._drop_cancelled()
                self._step()
        except Exception as error:  # the thread is the engine: whatever ends it must be told to everyone who waits
            self._error = f"{type(error).__name__}: {error}"
        with self._wake:  # whoever comes later is refused
            self._closed = True
            told = [*self._running(), *self._inbox]
            self._inbox.clear()
        for request in told:
            if request.finish is None:
                request.emit([], "error" if self._error else "cancelled")

    def _wait(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._inbox or self._running())
            return not self._closed

    def _drop_cancelled(self) -> None:
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
            gone = [r for r in self._inbox if r.number in cancelled]
            self._inbox = deque(r for r in self._inbox if r.number not in cancelled)
        aborted = [r for r in self._running() if r.number in cancelled]
        for request in [*gone, *aborted]:
            request.emit([], "cancelled")
        if aborted:
            self._abort(aborted)

    def _next_new(self) -> Request | None:
        """The oldest request of the inbox, taken out of it; one at a time, so that a failure of one leaves the others where they are told."""
        with self._wake:
            return self._inbox.popleft() if self._inbox else None

    @abstractmethod
    def _running(self) -> Collection[Request]:
        """What has left the inbox and still has a place in the engine."""

    @abstractmethod
    def _step(self) -> None:
        """Admit what there is room for, and bring every running request on by a token or more."""

    @abstractmethod
    def _abort(self, requests: list[Request]) -> None:
        """Free the places of running requests whose listeners have been told."""
