"""The default engine: continuous batching over any Hugging Face causal LM. Knows no text, no HTTP and no Ray.

In transformers' own continuous batching a request has no seed, one at temperature 0 kills the thread, and a cancelled
one gets no terminal event.
"""

import logging
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import DynamicCache

from actors.generation.adapter_rows import AdapterRows, LoadedAdapter
from actors.generation.answer_rule import AnswerRule, next_tokens
from actors.generation.cache_check import require_cacheable
from actors.generation.engine_thread import EngineThread, Request
from actors.generation.grammar import GrammarCompiler
from actors.generation.guidance import GuidedRow, guided
from actors.generation.kv_budget import LEAST, KVBudget
from actors.generation.kv_cache import DECODE, KVCache
from actors.generation.logprobs import prefill_with_logprobs
from actors.generation.prefix_cache import PrefixCache
from actors.generation.protocol import GenerationStep, Grammar, TokenLogprob
from actors.kernels.machine_memory import ALONE, MachineShare
from actors.modeling.policy import Policy

log = logging.getLogger(__name__)


@dataclass
class _Sequence:
    """A running request."""

    request: Request
    rule: AnswerRule
    generated: list[int] = field(default_factory=list)  # the last of them is not yet in the cache


@dataclass
class _Row:
    """A row of the KV cache: a sequence after its prompt, or after the one that it is guided away from."""

    sequence: _Sequence
    length: int  # tokens in the cache
    is_own: bool = True


class TransformersEngine(EngineThread):
    """Continuous batching: requests join and leave between steps."""

    def __init__(
        self,
        policy: Policy,
        max_num_seqs: int = 16,
        prefix_cache_tokens: int = 0,
        max_context: int | None = None,
        kv_cache_gib: float | None = None,
        share: MachineShare = ALONE,
    ):
        """`prefix_cache_tokens`: prompt tokens kept for prompts that begin alike. Reused values equal recomputed ones
        to some 1e-6, not to the last bit. `max_context`: of prompt and answer, where the model takes more.
        `kv_cache_gib`: memory of the keys and values of running requests; None = a part of the device's, or of `share`.

        Raises UserError if that is too little for any answer, and for a model that the KV cache would change.
        """
        self._policy, self._model, self._stop_ids = policy, policy.model, policy.stop_ids
        if type(self._model)._supports_attention_backend:
            self._model.set_attn_implementation(DECODE)
        require_cacheable(self._model)
        budget = KVBudget.of(self._model, kv_cache_gib, share)
        context = min(policy.max_tokens, max_context or policy.max_tokens)
        num_tokens = self._model.config.get_text_config().vocab_size
        if budget.context < context:
            super().__init__("generator", budget.context, num_tokens, f"{budget}, which is room for a request")
        else:
            super().__init__("generator", context, num_tokens)
        self.guided_context = min(self.context, budget.guided_context)
        if max_num_seqs < 2:
            self.no_guidance = "it takes the places of two answers, and max_num_seqs is 1; leave it out, or raise that"
        elif self.guided_context < LEAST:
            self.no_guidance = f"it keeps two rows, and there is {budget}; leave it out, or raise kv_cache_gib"
        self._max_num_seqs, self._prefix_cache_tokens = max_num_seqs, prefix_cache_tokens
        self._sequences: list[_Sequence] = []
        self._rows: list[_Row] = []  # as the KV cache has them
        self._preempted: deque[_Sequence] = deque()
        self._kv_cache = KVCache(max_num_seqs, budget.cells)
        self._prefix_cache = PrefixCache(prefix_cache_tokens)
        self.start()

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        """Made with the first grammar."""
        return GrammarCompiler(self._policy.tokenizer, self.num_tokens, self._stop_ids)

    @cached_property
    def _adapter_rows(self) -> AdapterRows:
        """Made with the first adapter."""
        return AdapterRows(self._policy)

    def put_adapter(self, name: str, folder: str) -> None:
        self._adapters[name] = self._adapter_rows.load(name, folder)

    def _answering(self, adapters: list[LoadedAdapter | None]) -> AbstractContextManager[None]:
        """Within it a forward has rows of these adapters."""
        return self._adapter_rows.of(adapters) if any(adapters) else nullcontext()

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
        while len(self._rows) < self._max_num_seqs and (sequence := self._next()):
            self._sequences.append(sequence)  # before any work, so that a failure reaches its listener
            request, continued = sequence.request, sequence.generated[:-1]
            own, ids = request.sampling, [*request.prompt_ids, *continued]
            unguided_ids = [*own.unguided_ids, *continued] if own.is_guided else []
            prompt_logprobs: list[TokenLogprob | None] | None = None
            try:
                with self._answering([request.adapter]):
                    # The one without attributes first: the other begins with it, and replaces it in the prefix cache.
                    unguided = self._prefill(unguided_ids, request.cache_salt) if unguided_ids else None
                    if own.prompt_logprobs is not None and not sequence.generated:
                        prefilled, logits_RV, prompt_logprobs = self._prefill_whole(request)
                    else:
                        prefilled, logits_RV = self._prefill(ids, request.cache_salt)
            except torch.OutOfMemoryError:
                # Of this prompt: nothing of it is kept, and the others go on.
                self._sequences.pop()
                request.emit([], "memory")
                continue
            if not own.max_tokens:
                self._sequences.pop()
                request.send(GenerationStep([], "length", prompt_logprobs=prompt_logprobs))
                continue
            self._join(prefilled, _Row(sequence, len(ids)))
            if unguided is not None:
                self._join(unguided[0], _Row(sequence, len(unguided_ids), is_own=False))
                logits_RV = guided(torch.cat([logits_RV, unguided[1]]), [GuidedRow(0, 1, own.guidance)])[:1]
            if not sequence.generated:
                self._take([sequence], logits_RV, prompt_logprobs)
        self._retire()

    def _join(self, prefilled: DynamicCache, row: _Row) -> None:
        self._kv_cache.join(prefilled, row.length)
        self._rows.append(row)

    def _next(self) -> _Sequence | None:
        """The request to run next, if the KV cache has rows for it, and room up to its last token; else it waits."""
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
        lengths = [length for r in requests for length in _lengths(r)]
        return len(lengths) <= self._max_num_seqs and self._kv_cache.fits(lengths)

    def _preempt(self) -> None:
        """Memory ran out while requests ran: none is lost. They are prefilled again with what they have, as many as
        fit into less memory."""
        running = [sequence for sequence in self._sequences if sequence.request.finish is None]
        self._sequences.clear()
        self._rows.clear()
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
        self._prefix_cache.keep(ids, cache, request.cache_salt)
        return cache, logits_1V, found

    def _decode(self) -> None:
        """One token for every running request."""
        if not self._rows:
            return
        device = self._model.device
        ids_R1 = torch.tensor([[row.sequence.generated[-1]] for row in self._rows], device=device)
        positions_R1 = torch.tensor([[row.length] for row in self._rows], device=device)
        mask_RL = self._kv_cache.begin_step()
        with self._answering([row.sequence.request.adapter for row in self._rows]):
            logits_RV = self._model(
                input_ids=ids_R1,
                position_ids=positions_R1,
                attention_mask=mask_RL,
                past_key_values=self._kv_cache,
                use_cache=True,
            ).logits[:, -1]
        self._kv_cache.end_step()
        for row in self._rows:
            row.length += 1
        self._take(*self._own(logits_RV))

    def _own(self, logits_RV: torch.Tensor) -> tuple[list[_Sequence], torch.Tensor]:
        """The running sequences, in the order of their own rows, and the logits [S, V] of each."""
        own = [place for place, row in enumerate(self._rows) if row.is_own]
        sequences = [self._rows[place].sequence for place in own]
        if len(own) == len(self._rows):
            return sequences, logits_RV
        place_of = {id(row.sequence): place for place, row in enumerate(self._rows) if not row.is_own}
        pairs = [
            GuidedRow(place, place_of[id(sequence)], sequence.request.sampling.guidance)
            for place, sequence in zip(own, sequences, strict=True)
            if id(sequence) in place_of
        ]
        return sequences, guided(logits_RV, pairs)[own]

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
        over = [place for place, row in enumerate(self._rows) if row.sequence.request.finish is not None]
        if over:
            self._rows = [self._rows[place] for place in self._kv_cache.leave(over)]
            self._sequences = [s for s in self._sequences if s.request.finish is None]


def _lengths(request: Request) -> list[int]:
    """Tokens of each row that the request keeps, up to its last one."""
    own = request.sampling
    prompts = [request.prompt_ids, own.unguided_ids] if own.is_guided else [request.prompt_ids]
    return [len(ids) + own.max_tokens for ids in prompts]
