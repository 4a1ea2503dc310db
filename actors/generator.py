"""The generation engine: token ids in, token ids out as they come. Knows no text, no HTTP and no Ray.

`TransformersEngine` is a small continuous-batching scheduler over any Hugging Face causal LM. transformers' own continuous
batching was not taken: it has no per-request seed, one request at temperature 0 kills its thread, and a cancelled request
gets no terminal event.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from transformers import DynamicCache

from actors.policy import Policy


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises ValueError for values no sampler could follow."""

    max_tokens: int = 256
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    seed: int | None = None
    """Same seed, same draws, whatever runs beside it; None = a fresh one."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens {self.max_tokens} must be at least 1")
        if not 0 <= self.temperature <= 100 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"temperature {self.temperature} (0..100), top_p {self.top_p} (0 < top_p <= 1) or top_k {self.top_k} (>= 0) is out of range")


@dataclass(frozen=True)
class Step:
    """What one engine step brought one request."""

    token_ids: list[int]
    """New ids; the one that ended the answer is not among them."""
    finish: str | None
    """None while running, else "stop" (turn end), "length", "cancelled" or "error"."""


Listener = Callable[[Step], None]
"""Called from the engine's thread; must not block."""


class Engine(Protocol):
    """What the endpoint and the sampler ask of an engine."""

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        """Queue a request and return its number; raises ValueError if prompt and max_tokens exceed the context."""
        ...

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        """Queue requests that start together. On an engine that was idle they always run in the same company, so that their
        numbers are equal to the last bit and with them the draws of equal seeds."""
        ...

    def cancel(self, request: int) -> None:
        """Stop it; its slot is free at the next step, and its listener gets finish "cancelled"."""
        ...

    @property
    def error(self) -> str | None:
        """Why the engine died; None while it lives."""
        ...

    def close(self) -> None: ...


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

    def __init__(self, policy: Policy, max_slots: int = 16):
        self._model, self._stop_ids, self._context = policy.model, policy.stop_ids, policy.max_tokens
        self._max_slots = max_slots
        self._waiting: deque[_Slot] = deque()
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._closed = False
        self._error: str | None = None
        self._slots: list[_Slot] = []
        self._cache = DynamicCache()
        self._mask_BL = torch.zeros(0, 0, dtype=torch.bool)
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    @property
    def error(self) -> str | None:
        return self._error

    @property
    def num_running(self) -> int:
        # A request that ended keeps its row until the step is over, though its listener has heard already.
        return sum(slot.finish is None for slot in self._slots)

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        if not prompt_ids:
            raise ValueError("the prompt is empty")
        if len(prompt_ids) + sampling.max_tokens > self._context:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens and max_tokens is {sampling.max_tokens}: together they exceed the model's context of {self._context}"
            )
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
        for slot in [*self._slots, *self._waiting]:
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
            cache = DynamicCache()
            ids_1T = torch.tensor([list(slot.prompt_ids)], device=self._model.device)
            logits_1V = self._model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            slot.length = len(slot.prompt_ids)
            self._join(cache, slot.length)
            self._take([slot], logits_1V)
        self._retire()

    def _decode(self) -> None:
        """One token for every running request."""
        if not self._slots:
            return
        device = self._model.device
        ids_B1 = torch.tensor([[s.last] for s in self._slots], device=device)
        positions_B1 = torch.tensor([[s.length] for s in self._slots], device=device)
        self._mask_BL = torch.cat([self._mask_BL, self._mask_BL.new_ones(len(self._slots), 1)], dim=1)
        logits_BV = self._model(
            input_ids=ids_B1, position_ids=positions_B1, attention_mask=self._mask_BL.long(), past_key_values=self._cache, use_cache=True
        ).logits[:, -1]
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
            self._emit(slot, [token], "length" if slot.generated == slot.sampling.max_tokens else None)

    def _emit(self, slot: _Slot, token_ids: list[int], finish: str | None) -> None:
        slot.finish = finish
        try:
            slot.listener(Step(token_ids, finish))
        except Exception:  # a listener that fails ends its own request, never the engine
            slot.finish = "cancelled"

    def _join(self, cache: DynamicCache, length: int) -> None:
        """Add one row to the cache; the shorter side is padded on the left and masked."""
        rows, width = self._mask_BL.shape
        total = max(width, length)
        mask_BL = torch.zeros(rows + 1, total, dtype=torch.bool, device=self._model.device)
        mask_BL[:rows, total - width :] = self._mask_BL
        mask_BL[rows, total - length :] = True
        if rows:
            for mine, new in zip(self._cache.layers, cache.layers, strict=True):
                mine.keys = torch.cat([_left_padded(mine.keys, total), _left_padded(new.keys, total)])
                mine.values = torch.cat([_left_padded(mine.values, total), _left_padded(new.values, total)])
        else:
            self._cache = cache
        self._mask_BL = mask_BL

    def _retire(self) -> None:
        """Free the rows of finished requests, and the columns that only they used."""
        keep = [i for i, slot in enumerate(self._slots) if slot.finish is None]
        if len(keep) == len(self._slots):
            return
        self._slots = [self._slots[i] for i in keep]
        if not keep:
            self._cache, self._mask_BL = DynamicCache(), torch.zeros(0, 0, dtype=torch.bool, device=self._model.device)
            return
        index = torch.tensor(keep, device=self._model.device)
        first = int(self._mask_BL[index].any(dim=0).nonzero()[0])
        self._mask_BL = self._mask_BL[index, first:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]


def _left_padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[2], 0))


def sample(logits_BV: torch.Tensor, samplings: Sequence[Sampling], rngs: Sequence[np.random.Generator]) -> list[int]:
    """One token a row: temperature, then top-k, then top-p, then inverse-CDF sampling by the row's own random numbers."""
    tokens = logits_BV.argmax(dim=-1).tolist()
    rows = [i for i, s in enumerate(samplings) if s.temperature > 0]
    if not rows:
        return tokens
    temperature_R1 = torch.tensor([[samplings[i].temperature] for i in rows], device=logits_BV.device)
    ranked_RV, order_RV = (logits_BV[rows].float() / temperature_R1.clamp_min(1e-4)).sort(dim=-1, descending=True)
    top_k_R1 = torch.tensor([[samplings[i].top_k or logits_BV.shape[-1]] for i in rows], device=logits_BV.device)
    outside_RV = torch.arange(logits_BV.shape[-1], device=logits_BV.device)[None] >= top_k_R1
    probs_RV = ranked_RV.masked_fill(outside_RV, -torch.inf).softmax(dim=-1)
    cumulative_RV = probs_RV.cumsum(dim=-1)
    top_p_R1 = torch.tensor([[samplings[i].top_p] for i in rows], device=logits_BV.device)
    # A token is kept while the mass before it is below top_p, so the first one always is.
    kept_RV = probs_RV * (cumulative_RV - probs_RV < top_p_R1)
    cumulative_RV = kept_RV.cumsum(dim=-1)
    draws_R1 = torch.tensor([[rngs[i].random()] for i in rows], device=logits_BV.device, dtype=cumulative_RV.dtype) * cumulative_RV[:, -1:]
    ranks_R1 = torch.searchsorted(cumulative_RV, draws_R1, right=True).clamp_max((kept_RV > 0).sum(dim=-1, keepdim=True) - 1)
    for i, token in zip(rows, order_RV.gather(1, ranks_R1)[:, 0].tolist(), strict=True):
        tokens[i] = token
    return tokens


def complete(engine: Engine, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[tuple[list[int], str]]:
    """Run all requests to their end: (ids, finish) in the order given. Raises RuntimeError if the engine dies."""
    answers: list[list[int]] = [[] for _ in requests]
    finished = [""] * len(requests)
    open_requests = len(requests)
    done = threading.Event()
    lock = threading.Lock()

    def listener(index: int) -> Listener:
        def listen(step: Step) -> None:
            nonlocal open_requests
            answers[index] += step.token_ids
            if step.finish:
                finished[index] = step.finish
                with lock:
                    open_requests -= 1
                    if not open_requests:
                        done.set()

        return listen

    engine.submit_all([(ids, sampling, listener(index)) for index, (ids, sampling) in enumerate(requests)])
    if requests:
        done.wait()
    if engine.error:
        raise RuntimeError(f"the generation engine died: {engine.error}")
    return list(zip(answers, finished, strict=True))
