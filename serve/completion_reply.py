"""The reply of OpenAI's older route, text completions: its records, whole or chunk by chunk.

Knows no HTTP, no server-sent events, no policy and no attributes: it is given texts, tokens and counts.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from serve.logprobs import CompletionLogprobs, ReportedToken
from serve.protocol import ProtocolRecord
from serve.reply import BestOfChoice, FinishedAnswer, Usage
from serve.request import Echo, Finish


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


class CompletionReply:
    """The reply to one request; the whole and all chunks have one id."""

    has_done = True

    def __init__(self, model: str, num_top: int | None = None):
        """`num_top`: the request's `logprobs`; None = none are sent."""
        self.id, self.created, self.model = f"cmpl-{uuid.uuid4().hex}", int(time.time()), model
        self._num_top = num_top
        self._offsets: dict[int, int] = {}  # choice -> where its next token begins

    def whole(self, answers: Sequence[FinishedAnswer], usage: Usage, choice: BestOfChoice | None = None) -> Completion:
        assert choice is None, "only chat has best_of in our meaning"
        choices = []
        for index, answer in enumerate(answers):
            before = answer.echo or Echo("")
            text, tokens = before.text + answer.text, (*before.tokens, *answer.tokens)
            choices.append(self._choice(index, text, tokens, answer.finish))
        return self._completion(choices, usage)

    def opening(self, index: int) -> list[Completion]:
        return []

    def pieces(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> list[Completion]:
        return [self._completion([self._choice(index, text, tokens)])]

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> list[Completion]:
        assert measured is None, "only chat has score"
        return [self._completion([self._choice(index, "", (), finish)])]

    def counts(self, usage: Usage) -> list[Completion]:
        return [self._completion([], usage)]

    def _choice(
        self, index: int, text: str, tokens: Sequence[ReportedToken], finish: Finish | None = None
    ) -> CompletionChoice:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(token.settled) for token in tokens)
        logprobs = None if self._num_top is None else CompletionLogprobs.of(tokens, self._num_top, offset)
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
