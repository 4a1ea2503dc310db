"""The engine contract: token ids in, token ids out as they come. Knows no text, no HTTP, no Ray and no engine.

Two engines implement it (tests/test_engines.py tests both): `actors.generation.transformers_engine`, over any Hugging
Face causal LM, and `actors.generation.vllm_engine`, over vLLM.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from data.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UserError for values out of range."""

    max_tokens: int = 256
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    seed: int | None = None
    """The same seed gives the same draws, whatever else runs; None = a random one."""
    cache_salt: str = ""
    """Chooses no token: only prompts with the same one share the prefix cache, because its hits can be timed."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens {self.max_tokens} must be at least 1")
        if not 0 <= self.temperature <= 100 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError(
                f"temperature {self.temperature} (0..100), top_p {self.top_p} (0 < top_p <= 1) or "
                f"top_k {self.top_k} (>= 0) is out of range"
            )


@dataclass(frozen=True)
class GenerationStep:
    """The result of one engine step for one request."""

    token_ids: list[int]
    """New ids; the one that ended the answer is not among them."""
    finish: str | None
    """None while running, else "stop" (turn end), "length", "cancelled", "memory" (prompt and answer are too long for
    what is left of it) or "error"."""


def require_fit(
    prompt_ids: Sequence[int], sampling: Sampling, context: int, limit: str = "the model's context"
) -> None:
    """Raises UserError, with the numbers, unless prompt and answer fit into `context` tokens; `limit` is what these
    are."""
    if not prompt_ids:
        raise UserError("the prompt is empty")
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
        """Queue a request and return its number; raises UserError if prompt and max_tokens exceed the context."""
        ...

    def submit_all(self, requests: Sequence[tuple[Sequence[int], Sampling, Listener]]) -> list[int]:
        """Queue requests that start together. On an idle engine they always run beside the same ones: their numbers are
        equal to the last bit, and so are the draws of equal seeds."""
        ...

    def cancel(self, request: int) -> None:
        """Stop it; its place is free at the next step, and its listener gets finish "cancelled"."""
        ...

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
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
