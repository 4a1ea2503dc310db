"""The engine contract: token ids in, token ids out as they come. Knows no text, no HTTP, no Ray and no engine.

Two engines implement it (tests/test_engines.py tests both): `actors.generation.transformers_engine`, over any Hugging
Face causal LM, and `actors.generation.vllm_engine`, over vLLM.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from data.bounds import MAX_GUIDANCE
from data.errors import UserError

MAX_LOGPROBS = 20
"""Alternatives to a token: OpenAI's bound, and vLLM's."""
MAX_PENALTY = 2.0
"""OpenAI's bound on the penalties that are subtracted."""
REPETITION_RANGE = (0.01, 100.0)
MAX_BIAS = 100.0
MAX_BIASED = 1024
"""Tokens with a bias in one request."""


@dataclass(frozen=True)
class Grammar:
    """The form that an answer must have; `actors.generation.grammar` compiles it."""

    kind: Literal["json_object", "json_schema", "regex", "ebnf", "structural_tag"]
    """"structural_tag" mixes free text and JSON, in xgrammar's own notation."""
    text: str = ""
    """The schema or the tag as JSON, the pattern, or the rules; of a JSON object nothing."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UserError for values out of range.

    In this order, as vLLM has it: guidance (vLLM has none), grammar, bias, repetition penalty, frequency and presence
    penalty, temperature, min_p, top_k, top_p.
    """

    max_tokens: int = 256
    """0 = only the prompt's log-probabilities."""
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    seed: int | None = None
    """The same seed gives the same draws, whatever else runs; None = a random one."""
    cache_salt: str = ""
    """Chooses no token: only prompts with the same one share the prefix cache, because its hits can be timed."""
    min_p: float = 0.0
    """Only tokens at least this likely, in shares of the likeliest one's probability; 0 = off."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that the answer has."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that prompt or answer have, and multiplies negative ones; 1 = off."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit."""
    logprobs: int | None = None
    """Report each token's log-probability and those of so many likeliest tokens; None = off."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens. Such a prompt is computed whole, whatever the prefix cache has."""
    grammar: Grammar | None = None
    ignore_eos: bool = False
    """Go on to max_tokens, whatever ends an answer: for benchmarks, which compare answers of one length."""
    guidance: float = 1.0
    """Classifier-free guidance (`actors.generation.guidance`): how far to go from what the model would write after
    `unguided_ids` to what it would write after the prompt, and beyond; 1 = off, 0 = only the former."""
    unguided_ids: tuple[int, ...] = ()
    """The prompt without what the answer is guided to. A guided request keeps a second row for it."""
    adapter: str = ""
    """The name of the adapter that answers (`Engine.put_adapter`); "" = the policy alone."""

    @property
    def is_guided(self) -> bool:
        """Does it need the second row? Without new tokens there is nothing to guide."""
        return self.guidance != 1 and self.max_tokens > 0

    def __post_init__(self) -> None:
        if self.max_tokens < 0 or (self.max_tokens == 0 and self.prompt_logprobs is None):
            raise UserError(f"max_tokens {self.max_tokens} must be at least 1")
        if not 0 <= self.temperature <= 100 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError(
                f"temperature {self.temperature} (0..100), top_p {self.top_p} (0 < top_p <= 1) or "
                f"top_k {self.top_k} (>= 0) is out of range"
            )
        repetition_low, repetition_high = REPETITION_RANGE
        for name, value, low, high in (
            ("min_p", self.min_p, 0.0, 1.0),
            ("guidance", self.guidance, 0.0, MAX_GUIDANCE),
            ("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY),
            ("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY),
            ("repetition_penalty", self.repetition_penalty, repetition_low, repetition_high),
            ("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS),
            ("prompt_logprobs", self.prompt_logprobs or 0, 0, MAX_LOGPROBS),
            *((f"logit_bias of token {token}", bias, -MAX_BIAS, MAX_BIAS) for token, bias in self.logit_bias.items()),
        ):
            if not low <= value <= high:
                raise UserError(f"{name} {value} is out of range: it must be from {low:g} to {high:g}")
        if self.ignore_eos and self.grammar is not None:
            raise UserError("ignore_eos goes on behind the end of what a grammar allows: leave one of them out")
        if len(self.logit_bias) > MAX_BIASED:
            raise UserError(f"logit_bias names {len(self.logit_bias)} tokens: at most {MAX_BIASED} are allowed")


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, given those before it: natural logarithms of the softmax over the raw logits.

    Raw means before bias, penalties, temperature and what follows, as in vLLM; only guidance and a grammar's bans come
    earlier. A prompt's own are never guided.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the likeliest tokens, in that order; those that a grammar bans are left out."""


@dataclass(frozen=True)
class GenerationStep:
    """The result of one engine step for one request."""

    token_ids: list[int]
    """New ids; the one that ended the answer is not among them."""
    finish: str | None
    """None while running, else "stop" (turn end), "length", "cancelled", "memory" (prompt and answer are too long for
    what is left of it) or "error"."""
    logprobs: list[TokenLogprob] | None = None
    """Of each of `token_ids`; None unless asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Of each token of the prompt, in the request's first step only; the first token has none."""
    end_id: int | None = None
    """The token that ended the answer, if one did."""
    end_logprob: TokenLogprob | None = None


def require_fit(
    prompt_ids: Sequence[int], sampling: Sampling, context: int, limit: str = "the model's context"
) -> None:
    """Raises UserError, with the numbers, unless prompt and answer fit into `context` tokens; `limit` is what these
    are. Every prompt leaves room for a token, also the one that an answer is guided away from."""
    if sampling.is_guided and len(sampling.unguided_ids) > len(prompt_ids):
        prompt_ids = sampling.unguided_ids
    if not prompt_ids or (sampling.is_guided and not sampling.unguided_ids):
        raise UserError("the prompt is empty")
    if not sampling.max_tokens and len(prompt_ids) >= context:
        raise UserError(f"the prompt has {len(prompt_ids)} tokens: it must be shorter than {limit} of {context}")
    if len(prompt_ids) + sampling.max_tokens > context:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {sampling.max_tokens}: "
            f"together they exceed {limit} of {context}"
        )


Listener = Callable[[GenerationStep], None]
"""Called from the engine's thread; must not block."""


@dataclass(frozen=True)
class Load:
    """Requests in an engine at the moment, and tokens since it started."""

    running: int = 0
    waiting: int = 0
    """Requests in the queue."""
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens that went through the model."""
    reused_tokens: int = 0
    """Prompt tokens from the prefix cache: an earlier request began with the same ones."""


class Engine(Protocol):
    """The methods that the endpoint and the sampler call."""

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, listener: Listener) -> int:
        """Queue a request and return its number.

        Raises UserError if prompt and max_tokens exceed the context, if the vocabulary has not all tokens that are
        named, if there is no such adapter, if the engine has no guidance and it is asked for, and if the grammar cannot
        be compiled. That takes up to seconds, so a loop of events calls this from another thread.
        """
        ...

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        """Queue requests that start together. On an idle engine they always run beside the same ones: their numbers are
        equal to the last bit, and so are the draws of equal seeds."""
        ...

    def cancel(self, request: int) -> None:
        """Stop it; its place is free at the next step, and its listener gets finish "cancelled"."""
        ...

    def put_adapter(self, name: str, folder: str) -> None:
        """From now on requests that name it are answered by the exported adapter in a local folder, beside the same
        weights; those that run end on the one that they began with. Takes seconds, so a loop of events calls this from
        another thread.

        Raises UserError if it was trained on other weights, and if the engine cannot have it: then all stays.
        """
        ...

    def remove_adapter(self, name: str) -> None:
        """Requests that run end on it; later ones that name it are refused."""
        ...

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    @property
    def guided_context(self) -> int:
        """The same of a request with guidance, whose two rows share the memory."""
        ...

    @property
    def no_guidance(self) -> str:
        """Why this engine takes no request with guidance, and what to do; "" = it does."""
        ...

    @property
    def num_tokens(self) -> int:
        """Entries of the vocabulary: every token id is below it."""
        ...

    @property
    def load(self) -> Load: ...

    @property
    def error(self) -> str | None:
        """Why the engine died; None while it lives."""
        ...

    def close(self) -> None: ...


def complete(engine: Engine, requests: Sequence[tuple[Sequence[int], Sampling]]) -> list[tuple[list[int], str]]:
    """Run all requests to their end: (ids, finish) in the order given. Raises RuntimeError if the engine dies or has
    not enough memory for a prompt."""
    answers: list[list[int]] = [[] for _ in requests]
    finished = [""] * len(requests)
    open_requests = len(requests)
    done = threading.Event()
    lock = threading.Lock()

    def listener(index: int) -> Listener:
        def listen(step: GenerationStep) -> None:
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
    if "memory" in finished:
        longest = max(len(ids) for (ids, _), finish in zip(requests, finished, strict=True) if finish == "memory")
        raise RuntimeError(f"no memory for a prompt of {longest} tokens: lower max_num_seqs, or shorten the prompts")
    return list(zip(answers, finished, strict=True))
