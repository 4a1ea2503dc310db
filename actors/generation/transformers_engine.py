"""The default engine: continuous batching over any Hugging Face causal LM. Knows no text, no HTTP and no Ray.

In transformers' own continuous batching a request has no seed, one at temperature 0 kills the thread, and a cancelled
one gets no terminal event.
"""

import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import DynamicCache

from actors.generation.answer_rule import AnswerRule, next_tokens
from actors.generation.cache_check import require_cacheable
from actors.generation.engine_thread import EngineThread, Request
from actors.generation.grammar import GrammarCompiler
from actors.generation.kv_budget import KVBudget
from actors.generation.kv_cache import DECODE, KVCache
from actors.generation.logprobs import prefill_with_logprobs
from actors.generation.prefix_cache import PrefixCache
from actors.generation.protocol import GenerationStep, Grammar, TokenLogprob
from actors.modeling.policy import Policy

log = logging.getLogger(__name__)


@dataclass
class _Sequence:
    """A running request: a row of the KV cache."""

    request: Request
    rule: AnswerRule
    length: int = 0  # tokens in the cache
    generated: list[int] = field(default_factory=list)  # the last of them is not yet in the cache


class TransformersEngine(EngineThread):
    """Continuous batching: requests join and leave between steps."""

    def __init__(
        self,
        policy: Policy,
        max_num_seqs: int = 16,
        prefix_cache_tokens: int = 0,
        max_context: int | None = None,
        kv_cache_gib: float | None = None,
    ):
        """`prefix_cache_tokens`: prompt tokens kept for prompts that begin alike. Reused values equal recomputed ones
        to some 1e-6, not to the last bit. `max_context`: of prompt and answer, where the model takes more.
        `kv_cache_gib`: memory of the keys and values of running requests; None = a share of what the device has.

        Raises UserError if that is too little for any answer, and for a model that the KV cache would change.
        """
        self._policy, self._model, self._stop_ids = policy, policy.model, policy.stop_ids
        if type(self._model)._supports_attention_backend:
            self._model.set_attn_implementation(DECODE)
        require_cacheable(self._model)
        budget = KVBudget.of(self._model, kv_cache_gib)
        context = min(policy.max_tokens, max_context or policy.max_tokens)
        num_tokens = self._model.config.get_text_config().vocab_size
        if budget.context < context:
            super().__init__("generator", budget.context, num_tokens, f"{budget}, which is room for a request")
        else:
            super().__init__("generator", context, num_tokens)
        self._max_num_seqs, self._prefix_cache_tokens = max_num_seqs, prefix_cache_tokens
        self._sequences: list[_Sequence] = []
        self._preempted: deque[_Sequence] = deque()
        self._kv_cache = KVCache(max_num_seqs, budget.cells)
        self._prefix_cache = PrefixCache(prefix_cache_tokens)
        self.start()

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        """Made with the first grammar."""
        return GrammarCompiler(self._policy.tokenizer, self.num_tokens, self._stop_ids)

    def _compiled(self, grammar: Grammar) -> object:
        return self._grammars.compile(grammar)

    def _running(self) -> Collection[Request]:
        return [sequence.request for sequence in (*self._sequences, *self._preempted)]

    @torch.inference_mode()
    def _step(self) -> None:
        try:
            self._admit()
            self._decode()
        except torch.OutOfMemoryError:
            self._preempt()
        self._retire()

    @torch.inference_mode()
    def _abort(self, requests: list[Request]) -> None:
        self._retire()

    def _admit(self) -> None:
        """Prefill waiting requests into free rows, each alone: its numbers do not depend on other requests."""
        while len(self._sequences) < self._max_num_seqs and (sequence := self._next()):
            self._sequences.append(sequence)  # before any work, so that a failure reaches its listener
            request, ids = sequence.request, [*sequence.request.prompt_ids, *sequence.generated[:-1]]
            prompt_logprobs: list[TokenLogprob | None] | None = None
            try:
                if request.sampling.prompt_logprobs is not None and not sequence.generated:
                    prefilled, logits_1V, prompt_logprobs = self._prefill_whole(request)
                else:
                    prefilled, logits_1V = self._prefill(ids, request.sampling.cache_salt)
            except torch.OutOfMemoryError:
                # Of this prompt: nothing of it is kept, and the others go on.
                self._sequences.pop()
                request.emit([], "memory")
                continue
            if not request.sampling.max_tokens:
                self._sequences.pop()
                request.send(GenerationStep([], "length", prompt_logprobs=prompt_logprobs))
                continue
            sequence.length = len(ids)
            self._kv_cache.join(prefilled, sequence.length)
            if not sequence.generated:
                self._take([sequence], logits_1V, prompt_logprobs)
        self._retire()

    def _next(self) -> _Sequence | None:
        """The request to run next, if the KV cache has room for it up to its last token; else it waits."""
        while self._preempted:
            if self._fits(self._preempted[0].request):
                return self._preempted.popleft()
            if self._sequences:
                return None
            self._preempted.popleft().request.emit([], "memory")
        while not self._sequences and (request := self._next_new(lambda request: not self._fits(request))):
            request.emit([], "memory")  # taken before memory ran out: now it does not fit alone either
        new = self._next_new(self._fits)
        if new is None:
            return None
        grammar = self._grammars.state(new.compiled) if new.compiled is not None else None
        return _Sequence(new, AnswerRule(new.sampling, new.prompt_ids, self.num_tokens, self._model.device, grammar))

    def _fits(self, request: Request) -> bool:
        requests = (*(sequence.request for sequence in self._sequences), request)
        return self._kv_cache.fits([len(r.prompt_ids) + r.sampling.max_tokens for r in requests])

    def _preempt(self) -> None:
        """Memory ran out while requests ran: none is lost. They are prefilled again with what they have, as many as
        fit into less memory."""
        running = [sequence for sequence in self._sequences if sequence.request.finish is None]
        self._sequences.clear()
        self._preempted.extendleft(reversed(running))
        cells = self._kv_cache.shrink()
        self._prefix_cache = PrefixCache(self._prefix_cache_tokens)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "memory ran out with %d requests running; from now on their prompts and answers get room for %s tokens "
            "(lower max_num_seqs or kv_cache_gib)",
            len(running),
            f"{cells:,}",
        )

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

    def _prefill_whole(self, request: Request) -> tuple[DynamicCache, torch.Tensor, list[TokenLogprob | None]]:
        """The same without the prefix cache, which has no logits, and the prompt's log-probabilities."""
        ids, own = request.prompt_ids, request.sampling
        cache, logits_1V, found = prefill_with_logprobs(self._model, ids, own.prompt_logprobs or 0, self.num_tokens)
        self._prefilled_tokens += len(ids)
        self._prefix_cache.keep(ids, cache, own.cache_salt)
        return cache, logits_1V, found

    def _decode(self) -> None:
        """One token for every running request."""
        if not self._sequences:
            return
        device = self._model.device
        ids_B1 = torch.tensor([[s.generated[-1]] for s in self._sequences], device=device)
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

    def _take(
        self,
        sequences: list[_Sequence],
        logits_BV: torch.Tensor,
        prompt_logprobs: list[TokenLogprob | None] | None = None,
    ) -> None:
        """Choose the next token of each sequence and send it to the listener."""
        for sequence, (token, logprob) in zip(
            sequences, next_tokens([s.rule for s in sequences], logits_BV), strict=True
        ):
            request, reports = sequence.request, sequence.request.sampling.logprobs is not None
            if token is None:
                log.error("a grammar has come to a point where the vocabulary has no token for it")
                request.send(GenerationStep([], "error", prompt_logprobs=prompt_logprobs))
                continue
            if token in self._stop_ids and not request.sampling.ignore_eos:
                request.send(GenerationStep([], "stop", [] if reports else None, prompt_logprobs, token, logprob))
                continue
            sequence.generated.append(token)
            sequence.rule.accept(token)
            self._generated_tokens += 1
            is_last = len(sequence.generated) == request.sampling.max_tokens
            logprobs = None if logprob is None else [logprob]
            request.send(GenerationStep([token], "length" if is_last else None, logprobs, prompt_logprobs))

    def _retire(self) -> None:
        """Free the rows of finished requests."""
        self._preempted = deque(s for s in self._preempted if s.request.finish is None)
        over = [i for i, sequence in enumerate(self._sequences) if sequence.request.finish is not None]
        if over:
            self._sequences = [self._sequences[i] for i in self._kv_cache.leave(over)]
