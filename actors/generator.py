"""The default engine: a small continuous-batching scheduler over any Hugging Face causal LM. Knows no text, no HTTP and no Ray.

transformers' own continuous batching was not taken: it has no per-request seed, one request at temperature 0 kills its thread, and a
cancelled request gets no terminal event.
"""

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from actors.generation import Listener, Load, Sampling, Step, require_fit
from actors.policy import Policy
from actors.prefixes import Prefixes
from actors.sampling import sample
from actors.slots import DECODE, Slots


@dataclass
class _Slot:
    """One running request: a row of the cache."""

    request: int
    prompt_ids: Sequence[int]
    sampling: Sampling
    listener: Listener
    rng: np.random.Generator
    length: int = 0  # tokens in the cache
    generated: int = 0
    last: int = -1  # sampled, not yet in the cache
    finish: str | None = field(default=None)


class TransformersEngine:
    """Continuous batching: requests join and leave between steps; rows of the cache are aligned at their right end."""

    def __init__(self, policy: Policy, max_slots: int = 16, prefix_tokens: int = 0):
        """`prefix_tokens`: prompt tokens whose keys and values are kept for prompts that begin alike. What was reused is equal to what would
        have been computed to some 1e-6, not to the last bit."""
        self._model, self._stop_ids, self._context = policy.model, policy.stop_ids, policy.max_tokens
        self._max_slots = max_slots
        self._waiting: deque[_Slot] = deque()
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._closed = False
        self._error: str | None = None
        self._slots: list[_Slot] = []
        self._cache = Slots(max_slots)
        self._prefixes = Prefixes(prefix_tokens)
        self._generated_tokens = self._prefilled_tokens = self._reused_tokens = 0
        self._model.set_attn_implementation(DECODE)
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def load(self) -> Load:
        # A request that ended keeps its row until the step is over, though its listener has heard already.
        running = sum(slot.finish is None for slot in self._slots)
        return Load(running, len(self._waiting), self._generated_tokens, self._prefilled_tokens, self._reused_tokens)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        require_fit(prompt_ids, sampling, self._context)
        with self._wake:
            if self._error or self._closed:
                raise RuntimeError(f"the engine is down: {self._error or 'closed'}")
            slot = _Slot(next(self._numbers), prompt_ids, sampling, listener, np.random.default_rng(sampling.seed))
            self._waiting.append(slot)
            self._wake.notify()
        return slot.request

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        with self._wake:  # the engine waits meanwhile: it sees none of them, or all
            return [self.submit(*request) for request in requests]

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
            with torch.inference_mode():
                while self._wait():
                    self._drop_cancelled()
                    self._admit()
                    self._decode()
                    self._retire()
        except Exception as error:  # the thread is the engine: whatever ends it must be told to everyone who waits
            self._error = f"{type(error).__name__}: {error}"
        with self._wake:  # whoever comes later is refused
            self._closed = True
            told = [*self._slots, *self._waiting]
        for slot in told:
            self._emit(slot, [], "error" if self._error else "cancelled")

    def _wait(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._waiting or self._slots)
            return not self._closed

    def _drop_cancelled(self) -> None:
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
            gone = [s for s in self._waiting if s.request in cancelled]
            self._waiting = deque(s for s in self._waiting if s.request not in cancelled)
        for slot in [*gone, *(s for s in self._slots if s.request in cancelled)]:
            self._emit(slot, [], "cancelled")
        self._retire()

    def _admit(self) -> None:
        """Prefill waiting requests into free slots, each alone: its numbers do not depend on who else arrives."""
        with self._wake:
            new = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_slots - len(self._slots)))]
        for slot in new:
            self._slots.append(slot)  # before any work, so that a failure reaches its listener
            prefilled, logits_1V = self._prefill(slot.prompt_ids)
            slot.length = len(slot.prompt_ids)
            self._cache.join(prefilled, slot.length)
            self._take([slot], logits_1V)
        self._retire()

    def _prefill(self, prompt_ids: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of a prompt, and the logits [1, V] at its end."""
        known, cache = self._prefixes.start(prompt_ids)
        ids_1T = torch.tensor([list(prompt_ids[known:])], device=self._model.device)
        positions_1T = torch.arange(known, len(prompt_ids), device=self._model.device)[None]
        logits_1V = self._model(input_ids=ids_1T, position_ids=positions_1T, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        self._prefilled_tokens += ids_1T.shape[1]
        self._reused_tokens += known
        self._prefixes.keep(prompt_ids, cache)
        return cache, logits_1V

    def _decode(self) -> None:
        """One token for every running request."""
        if not self._slots:
            return
        device = self._model.device
        ids_B1 = torch.tensor([[s.last] for s in self._slots], device=device)
        positions_B1 = torch.tensor([[s.length] for s in self._slots], device=device)
        mask_BL = self._cache.begin_step()
        logits_BV = self._model(input_ids=ids_B1, position_ids=positions_B1, attention_mask=mask_BL, past_key_values=self._cache, use_cache=True).logits[:, -1]
        self._cache.end_step()
        for slot in self._slots:
            slot.length += 1
        self._take(self._slots, logits_BV)

    def _take(self, slots: list[_Slot], logits_BV: torch.Tensor) -> None:
        for slot, token in zip(slots, sample(logits_BV, [s.sampling for s in slots], [s.rng for s in slots]), strict=True):
            slot.last = token
            if token in self._stop_ids:
                self._emit(slot, [], "stop")
                continue
            slot.generated += 1
            self._generated_tokens += 1
            self._emit(slot, [token], "length" if slot.generated == slot.sampling.max_tokens else None)

    def _emit(self, slot: _Slot, token_ids: list[int], finish: str | None) -> None:
        slot.finish = finish
        try:
            slot.listener(Step(token_ids, finish))
        except Exception:  # a listener that fails ends its own request, never the engine
            slot.finish = "cancelled"

    def _retire(self) -> None:
        """Free the rows of finished requests."""
        over = [i for i, slot in enumerate(self._slots) if slot.finish is not None]
        if over:
            self._slots = [self._slots[i] for i in self._cache.leave(over)]
