"""OpenAI's older route, text completions: what `prompt` may be, and the reply's records, whole or chunk by chunk.

Knows no HTTP, no server-sent events, no policy and no attributes: it is given texts, tokens and counts.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from serve.logprobs import CompletionLogprobs, ReportedToken
from serve.protocol import ProtocolError, ProtocolRecord
from serve.reply import Finish, Usage

MAX_PROMPTS = 64
"""Of one request; each has answers of its own."""
PROMPT = "a text, a list of texts, a list of token ids, or a list of such lists"


def prompts_of(prompt: object) -> list[str | tuple[int, ...]]:
    """Each prompt of a request, as text or as token ids. Raises ProtocolError for what is none."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ProtocolError(f"prompt is {_kind(prompt)}: it must be {PROMPT}, not empty", "prompt")
    if _is_id(prompt[0]):
        for place, item in enumerate(prompt):
            if not _is_id(item):
                raise ProtocolError(f"prompt[{place}] is {_kind(item)}: prompt must be {PROMPT}", f"prompt[{place}]")
        return [tuple(prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise ProtocolError(f"prompt has {len(prompt)} texts: at most {MAX_PROMPTS} are allowed", "prompt")
    return [_prompt(item, f"prompt[{place}]", type(prompt[0])) for place, item in enumerate(prompt)]


def _prompt(item: object, where: str, kind: type) -> str | tuple[int, ...]:
    """`kind`: of the first item, which all others must be."""
    if type(item) is kind:
        if isinstance(item, str):
            return item
        if isinstance(item, list) and item and all(_is_id(i) for i in item):
            return tuple(item)
    raise ProtocolError(f"{where} is {_kind(item)}: prompt must be {PROMPT}, not empty", where)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    names = {dict: "an object", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "no such value")


class CompletionChoice(ProtocolRecord):
    """One answer, or a chunk of one."""

    index: int
    """Of the prompt times n, plus that of the answer to it."""
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(ProtocolRecord):
    """Reply to a request, or one server-sent event of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = Field(None, exclude_if=lambda value: value is None)
    """In a streamed reply only in the last chunk, and only with stream_options.include_usage."""


@dataclass(frozen=True)
class Echo:
    """A prompt as its answer repeats it."""

    text: str
    tokens: Sequence[ReportedToken] = ()
    """Only where log-probabilities are asked for."""


@dataclass(frozen=True)
class FinishedCompletion:
    """One whole answer."""

    text: str
    finish: Finish
    tokens: Sequence[ReportedToken] = ()
    """With the one that ended it; only where log-probabilities are asked for."""


class CompletionReply:
    """The reply to one request; the whole and all chunks have one id."""

    def __init__(self, model: str, num_top: int | None = None):
        """`num_top`: the request's `logprobs`; None = none are sent."""
        self.id, self.created, self.model = f"cmpl-{uuid.uuid4().hex}", int(time.time()), model
        self._num_top = num_top
        self._offsets: dict[int, int] = {}  # choice -> where its next token begins

    def whole(self, answers: Sequence[FinishedCompletion], echoes: Sequence[Echo | None], usage: Usage) -> Completion:
        """`echoes`: of each answer, the prompt that it repeats."""
        choices = []
        for index, (answer, echo) in enumerate(zip(answers, echoes, strict=True)):
            before = echo or Echo("")
            text, tokens = before.text + answer.text, (*before.tokens, *answer.tokens)
            choices.append(self._choice(index, text, tokens, answer.finish))
        return self._completion(choices, usage)

    def piece(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> Completion:
        """More of an answer, or the prompt that it repeats, which comes first."""
        return self._completion([self._choice(index, text, tokens)])

    def closing(self, index: int, finish: Finish, tokens: Sequence[ReportedToken] = ()) -> Completion:
        return self._completion([self._choice(index, "", tokens, finish)])

    def counts(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _choice(
        self, index: int, text: str, tokens: Sequence[ReportedToken], finish: Finish | None = None
    ) -> CompletionChoice:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(token.settled) for token in tokens)
        logprobs = None if self._num_top is None else CompletionLogprobs.of(tokens, self._num_top, offset)
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
