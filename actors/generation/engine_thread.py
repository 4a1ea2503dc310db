"""The common half of both engines: one thread that holds the weights, and an inbox that any thread may fill.

Every request gets a last step when the thread ends. Knows no model: a subclass admits, steps and aborts requests
(`actors.generation.transformers_engine`, `actors.generation.vllm_engine`).
"""

import itertools
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from actors.generation.protocol import GenerationStep, Grammar, Listener, Load, Sampling, require_fit
from data.errors import UserError


@dataclass
class Request:
    """What was submitted, and how it ended."""

    number: int
    prompt_ids: Sequence[int]
    sampling: Sampling
    listener: Listener
    compiled: Any = None
    """The grammar of `sampling`, as the engine takes it."""
    adapter: Any = None
    """The adapter of `sampling`, as the engine holds it: the request ends on the one that it began with."""
    finish: str | None = None
    """The last step's `finish`; None while the request waits or runs."""

    @property
    def cache_salt(self) -> str:
        """Prompts with the same one share the prefix cache; those of different adapters never do."""
        salt = self.sampling.cache_salt
        return salt if self.adapter is None else str(self.adapter.salt(salt))

    def emit(self, token_ids: list[int], finish: str | None) -> None:
        self.send(GenerationStep(token_ids, finish))

    def send(self, step: GenerationStep) -> None:
        """Call the listener. If it raises, only its own request ends."""
        self.finish = step.finish
        try:
            self.listener(step)
        except Exception:
            self.finish = "cancelled"


class EngineThread(ABC):
    """The public methods of an engine; `actors.generation.protocol.Engine` documents them."""

    def __init__(self, name: str, context: int, num_tokens: int, limit: str = "the model's context"):
        """`context`: most tokens of prompt and answer together, because of `limit`; `num_tokens`: of the vocabulary.
        The subclass calls `start` when it is ready to step."""
        self.context, self.num_tokens, self.limit = context, num_tokens, limit
        self.guided_context, self.no_guidance = context, ""
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._cancelled: set[int] = set()
        self._adapters: dict[str, Any] = {}
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
        # A request that has ended keeps its place until the step is over.
        running = sum(request.finish is None for request in self._running())
        return Load(running, len(self._inbox), self._generated_tokens, self._prefilled_tokens, self._reused_tokens)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        return self.submit_all([(prompt_ids, sampling, listener)])[0]

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        for prompt_ids, sampling, _ in requests:
            self._require_fit(prompt_ids, sampling)
            self._require_known("the prompt", prompt_ids)
            self._require_known("the prompt without guidance", sampling.unguided_ids)
            self._require_known("logit_bias", sampling.logit_bias)
        compiled = [
            (None if s.grammar is None else self._compiled(s.grammar), self._adapter(s.adapter)) for _, s, _ in requests
        ]
        with self._wake:  # the thread sees all of them or none
            if self._error or self._closed:
                raise RuntimeError(f"the engine is down: {self._error or 'closed'}")
            new = [Request(next(self._numbers), *r, *own) for r, own in zip(requests, compiled, strict=True)]
            self._inbox += new
            self._notify()
        return [request.number for request in new]

    def cancel(self, request: int) -> None:
        with self._wake:
            self._cancelled.add(request)
            self._notify()

    def remove_adapter(self, name: str) -> None:
        self._adapters.pop(name, None)

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            while self._wait():
                self._drop_cancelled()
                self._step()
        except Exception as error:  # whatever ends the thread ends every request
            self._error = self._reason(error)
        with self._wake:  # later requests are refused
            self._closed = True
            unfinished = [*self._running(), *self._inbox]
            self._inbox.clear()
        for request in unfinished:
            if request.finish is None:
                request.emit([], "error" if self._error else "cancelled")

    def _reason(self, error: Exception) -> str:
        """Why the engine is down, in a sentence."""
        return f"{type(error).__name__}: {error}"

    def _notify(self) -> None:
        """Wake the thread; the caller holds the lock."""
        self._wake.notify()

    def _wait(self) -> bool:
        """Until there is something to do; False = the engine is closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._inbox or self._running())
            return not self._closed

    def _drop_cancelled(self) -> None:
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
            waiting = [r for r in self._inbox if r.number in cancelled]
            self._inbox = deque(r for r in self._inbox if r.number not in cancelled)
        aborted = [r for r in self._running() if r.number in cancelled]
        for request in [*waiting, *aborted]:
            request.emit([], "cancelled")
        if aborted:
            self._abort(aborted)

    def _next_new(self, fits: Callable[[Request], bool] = lambda request: True) -> Request | None:
        """Takes the oldest request from the inbox if it `fits`; the others wait behind it.

        One at a time: if it fails, `_run` still finds the others there.
        """
        with self._wake:
            return self._inbox.popleft() if self._inbox and fits(self._inbox[0]) else None

    def _adapter(self, name: str) -> Any:
        if name and name not in self._adapters:
            raise UserError(f"there is no adapter {name!r} here; there are {', '.join(self._adapters) or 'none'}")
        return self._adapters[name] if name else None

    def _require_fit(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        if not sampling.is_guided:
            require_fit(prompt_ids, sampling, self.context, self.limit)
        elif self.no_guidance:
            raise UserError(f"guidance {sampling.guidance:g} is not possible here: {self.no_guidance}")
        else:
            halved = self.guided_context < self.context
            limit = "a guided row's half of the KV cache" if halved else self.limit
            require_fit(prompt_ids, sampling, self.guided_context, limit)

    def _require_known(self, name: str, ids: Collection[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.num_tokens):
            wrong = next(i for i in ids if not 0 <= i < self.num_tokens)
            raise UserError(f"{name} has token {wrong}: the vocabulary ends at {self.num_tokens - 1}")

    @abstractmethod
    def put_adapter(self, name: str, folder: str) -> None: ...

    @abstractmethod
    def _compiled(self, grammar: Grammar) -> object:
        """Runs in the thread of the one who submits. Raises UserError, in one sentence, if it cannot be followed."""

    @abstractmethod
    def _running(self) -> Collection[Request]:
        """Requests that have left the inbox and still have a place in the engine."""

    @abstractmethod
    def _step(self) -> None:
        """Admit as many requests as fit, and generate a token or more for every running one."""

    @abstractmethod
    def _abort(self, requests: list[Request]) -> None:
        """Free the places of running requests that have ended."""
