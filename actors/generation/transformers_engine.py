"""The default engine: a small continuous-batching scheduler over any Hugging Face causal LM. Knows no text, no HTTP and no Ray.

transformers' own continuous batching was not taken: it has no per-request seed, one request at temperature 0 kills its thread, and a
cancelled request gets no terminal event.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from actors.generation.engine_thread import EngineThread, Request
from actors.generation.kv_cache import DECODE, KVCache
from actors.generation.prefix_cache import PrefixCache
from actors.generation.sampling import sample
from actors.modeling.policy import Policy


@dataclass
class _Sequence:
    """A running request: a row of the cache."""

    request: Request
    rng: np.random.Generator
    length: int = 0  # tokens in the cache
    generated: int = 0
    last: int = -1  # sampled, not yet in the cache


class TransformersEngine(EngineThread):
    """Continuous batching: requests join and leave between steps; rows of the cache are aligned at their right end."""

    def __init__(self, policy: Policy, max_num_seqs: int = 16, prefix_cache_tokens: int = 0):
        """`prefix_cache_tokens`: prompt tokens whose keys and values are kept for prompts that begin alike. What was reused is equal to what would
        have been computed to some 1e-6, not to the last bit."""
        super().__init__("generator", policy.max_tokens)
        self._model, self._stop_ids = policy.model, policy.stop_ids
        self._max_slots = max_num_seqs
        self._kv_cache: list[_Sequence] = []
        self._cache = KVCache(max_num_seqs)
        self._prefix_cache = PrefixCache(prefix_cache_tokens)
        self._model.set_attn_implementation(DECODE)
        self.start()

    def _running(self) -> Collection[Request]:
        return [sequence.request for sequence in self._kv_cache]

    @torch.inference_mode()
    def _step(self) -> None:
        self._admit()
        self._decode()
        self._retire()

    @torch.inference_mode()
    def _abort(self, requests: list[Request]) -> None:
        self._retire()

    def _admit(self) -> None:
        """Prefill waiting requests into free slots, each alone: its numbers do not depend on who else arrives."""
        while len(self._kv_cache) < self._max_slots and (request := self._next_new()):
            sequence = _Sequence(request, np.random.default_rng(request.sampling.seed))
            self._kv_cache.append(sequence)  # before any work, so that a failure reaches its listener
            prefilled, logits_1V = self._prefill(request.prompt_ids)
            sequence.length = len(request.prompt_ids)
            self._cache.join(prefilled, sequence.length)
            self._take([sequence], logits_1V)
        self._retire()

    def _prefill(self, prompt_ids: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of a prompt, and the logits [1, V] at its end."""
        known, cache = self._prefix_cache.start(prompt_ids)
        ids_1T = torch.tensor([list(prompt_ids[known:])], device=self._model.device)
        positions_1T = torch.arange(known, len(prompt_ids), device=self._model.device)[None]
        logits_1V = self._model(
            input_ids=ids_1T, position_ids=positions_1T, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        self._prefilled_tokens += ids_1T.shape[1]
        self._reused_tokens += known
        self._prefix_cache.keep(prompt_ids, cache)
        return cache, logits_1V

    def _decode(self) -> None:
        """One token for every running request."""
        if not self._kv_cache:
            return
        device = self._model.device
        ids_B1 = torch.tensor([[s.last] for s in self._kv_cache], device=device)
        positions_B1 = torch.tensor([[s.length] for s in self._kv_cache], device=device)
        mask_BL = self._cache.begin_step()
        logits_BV = self._model(
            input_ids=ids_B1,
            position_ids=positions_B1,
            attention_mask=mask_BL,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._cache.end_step()
        for sequence in self._kv_cache:
            sequence.length += 1
        self._take(self._kv_cache, logits_BV)

    def _take(self, kv_cache: list[_Sequence], logits_BV: torch.Tensor) -> None:
        tokens = sample(logits_BV, [s.request.sampling for s in kv_cache], [s.rng for s in kv_cache])
        for sequence, token in zip(kv_cache, tokens, strict=True):
            sequence.last = token
            if token in self._stop_ids:
                sequence.request.emit([], "stop")
                continue
            sequence.generated += 1
            self._generated_tokens += 1
            sequence.request.emit(
                [token], "length" if sequence.generated == sequence.request.sampling.max_tokens else None
            )

    def _retire(self) -> None:
        """Free the rows of finished requests."""
        over = [i for i, sequence in enumerate(self._kv_cache) if sequence.request.finish is not None]
        if over:
            self._kv_cache = [self._kv_cache[i] for i in self._cache.leave(over)]
