"""The default engine: continuous batching over any Hugging Face causal LM. Knows no text, no HTTP and no Ray.

In transformers' own continuous batching a request has no seed, one at temperature 0 kills the thread, and a cancelled
one gets no terminal event.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from actors.generation.cache_check import require_cacheable
from actors.generation.engine_thread import EngineThread, Request
from actors.generation.kv_cache import DECODE, KVCache
from actors.generation.prefix_cache import PrefixCache
from actors.generation.sampling import sample
from actors.modeling.policy import Policy


@dataclass
class _Sequence:
    """A running request: a row of the KV cache."""

    request: Request
    rng: np.random.Generator
    length: int = 0  # tokens in the cache
    generated: int = 0
    last: int = -1  # sampled, not yet in the cache


class TransformersEngine(EngineThread):
    """Continuous batching: requests join and leave between steps."""

    def __init__(
        self, policy: Policy, max_num_seqs: int = 16, prefix_cache_tokens: int = 0, max_context: int | None = None
    ):
        """`prefix_cache_tokens`: prompt tokens kept for prompts that begin alike. Reused values equal recomputed ones
        to some 1e-6, not to the last bit. `max_context`: of prompt and answer, where the model takes more.

        Raises UserError for a model that the KV cache would change.
        """
        super().__init__("generator", min(policy.max_tokens, max_context or policy.max_tokens))
        self._model, self._stop_ids = policy.model, policy.stop_ids
        self._max_num_seqs = max_num_seqs
        self._sequences: list[_Sequence] = []
        self._kv_cache = KVCache(max_num_seqs)
        self._prefix_cache = PrefixCache(prefix_cache_tokens)
        if type(self._model)._supports_attention_backend:
            self._model.set_attn_implementation(DECODE)
        require_cacheable(self._model)
        self.start()

    def _running(self) -> Collection[Request]:
        return [sequence.request for sequence in self._sequences]

    @torch.inference_mode()
    def _step(self) -> None:
        self._admit()
        self._decode()
        self._retire()

    @torch.inference_mode()
    def _abort(self, requests: list[Request]) -> None:
        self._retire()

    def _admit(self) -> None:
        """Prefill waiting requests into free rows, each alone: its numbers do not depend on other requests."""
        while len(self._sequences) < self._max_num_seqs and (request := self._next_new()):
            sequence = _Sequence(request, np.random.default_rng(request.sampling.seed))
            self._sequences.append(sequence)  # before any work, so that a failure reaches its listener
            try:
                prefilled, logits_1V = self._prefill(request.prompt_ids, request.sampling.cache_salt)
            except torch.OutOfMemoryError:
                # Of this prompt: nothing of it is kept, and the others go on.
                self._sequences.pop()
                request.emit([], "memory")
                continue
            sequence.length = len(request.prompt_ids)
            self._kv_cache.join(prefilled, sequence.length)
            self._take([sequence], logits_1V)
        self._retire()

    def _prefill(self, prompt_ids: Sequence[int], cache_salt: str) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of a prompt, and the logits [1, V] at its end."""
        cached, cache = self._prefix_cache.start(prompt_ids, cache_salt)
        ids_1T = torch.tensor([list(prompt_ids[cached:])], device=self._model.device)
        positions_1T = torch.arange(cached, len(prompt_ids), device=self._model.device)[None]
        logits_1V = self._model(
            input_ids=ids_1T, position_ids=positions_1T, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        self._prefilled_tokens += ids_1T.shape[1]
        self._reused_tokens += cached
        self._prefix_cache.keep(prompt_ids, cache, cache_salt)
        return cache, logits_1V

    def _decode(self) -> None:
        """One token for every running request."""
        if not self._sequences:
            return
        device = self._model.device
        ids_B1 = torch.tensor([[s.last] for s in self._sequences], device=device)
        positions_B1 = torch.tensor([[s.length] for s in self._sequences], device=device)
        mask_BL = self._kv_cache.begin_step()
        logits_BV = self._model(
            input_ids=ids_B1,
            position_ids=positions_B1,
            attention_mask=mask_BL,
            past_key_values=self._kv_cache,
            use_cache=True,
        ).logits[:, -1]
        self._kv_cache.end_step()
        for sequence in self._sequences:
            sequence.length += 1
        self._take(self._sequences, logits_BV)

    def _take(self, sequences: list[_Sequence], logits_BV: torch.Tensor) -> None:
        """Sample the next token of each sequence and send it to the listener."""
        tokens = sample(logits_BV, [s.request.sampling for s in sequences], [s.rng for s in sequences])
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.last = token
            if token in self._stop_ids:
                sequence.request.emit([], "stop")
                continue
            sequence.generated += 1
            self._generated_tokens += 1
            is_last = sequence.generated == sequence.request.sampling.max_tokens
            sequence.request.emit([token], "length" if is_last else None)

    def _retire(self) -> None:
        """Free the rows of finished requests."""
        over = [i for i, sequence in enumerate(self._sequences) if sequence.request.finish is not None]
        if over:
            self._sequences = [self._sequences[i] for i in self._kv_cache.leave(over)]
