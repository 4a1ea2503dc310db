"""The reply to one request in OpenAI's shape: its records, and what builds them, whole or chunk by chunk.

Knows no HTTP, no server-sent events and no policy: it is given the texts and the counts.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import Field

from serve.protocol import ProtocolRecord

Finish: TypeAlias = Literal["stop", "length"]


def _absent(value: object) -> bool:
    """As OpenAI does it: nothing instead of null, except where clients look for the null."""
    return value is None


class Usage(ProtocolRecord):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class BestOfCandidate(ProtocolRecord):
    """One of the answers that best_of chose from."""

    measured: dict[str, float]
    distance: float
    """Mean over the attributes of |measured - effective| / range: 0 = exactly as requested."""
    chosen: bool


class Steering(ProtocolRecord):
    """Ours: what the caller requested, what the prompt held, and what the answer has."""

    requested: dict[str, float]
    """By the caller."""
    effective: dict[str, int]
    """After the profile's and the schema's defaults, rounded."""
    sources: dict[str, str] | None = Field(None, exclude_if=_absent)
    """Attribute -> where its requested value stood ("verbosity", "model", "X-SteerLM-Attributes"), unless that is
    `attributes`."""
    measured: dict[str, float] | None = Field(None, exclude_if=_absent)
    """By the predictor, of the first choice; with score or best_of only."""
    candidates: list[BestOfCandidate] | None = Field(None, exclude_if=_absent)
    """All answers that best_of chose from."""


class AnswerMessage(ProtocolRecord):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(ProtocolRecord):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Finish
    logprobs: None = None
    measured: dict[str, float] | None = Field(None, exclude_if=_absent)
    """Ours: the predictor's values of this answer; with score or best_of only."""


class ChatCompletion(ProtocolRecord):
    """Reply to a request without stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    steering: Steering


class ChunkDelta(ProtocolRecord):
    """What this chunk adds."""

    role: Literal["assistant"] | None = Field(None, exclude_if=_absent)
    content: str | None = Field(None, exclude_if=_absent)
    steering: Steering | None = Field(None, exclude_if=_absent)
    """Ours: with score, in the closing chunk of the first answer. Clients that add up deltas keep it in the message."""


class ChunkChoice(ProtocolRecord):
    """One answer's part of a chunk."""

    index: int
    delta: ChunkDelta
    finish_reason: Finish | None = None
    logprobs: None = None


class Chunk(ProtocolRecord):
    """One server-sent event of a streamed reply."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, exclude_if=_absent)
    """In the last chunk only, and only with stream_options.include_usage."""
    steering: Steering | None = Field(None, exclude_if=_absent)
    """In the first chunk; with score once more, in the closing chunk of the first answer, with the measured values."""


@dataclass(frozen=True)
class FinishedAnswer:
    """One whole answer."""

    text: str
    finish: Finish
    measured: dict[str, float] | None = None


class ChatReply:
    """The reply to one request; the whole and all chunks have one id."""

    def __init__(self, model: str, steering: Steering):
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.model, self.steering = model, steering

    def whole(
        self, answers: Sequence[FinishedAnswer], usage: Usage, candidates: list[BestOfCandidate] | None = None
    ) -> ChatCompletion:
        choices = [
            Choice(index=i, message=AnswerMessage(content=a.text), finish_reason=a.finish, measured=a.measured)
            for i, a in enumerate(answers)
        ]
        steering = self.steering.model_copy(update={"measured": answers[0].measured, "candidates": candidates})
        return ChatCompletion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, steering=steering
        )

    def opening(self, index: int) -> Chunk:
        """The first chunk of an answer: the role, and what was requested."""
        choice = ChunkChoice(index=index, delta=ChunkDelta(role="assistant", content=""))
        return self._chunk([choice], steering=self.steering)

    def piece(self, index: int, text: str) -> Chunk:
        return self._chunk([ChunkChoice(index=index, delta=ChunkDelta(content=text))])

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> Chunk:
        """The last chunk of an answer, with what the predictor found, if it was asked."""
        steering = None if measured is None else self.steering.model_copy(update={"measured": measured})
        return self._chunk(
            [ChunkChoice(index=index, delta=ChunkDelta(steering=steering), finish_reason=finish)], steering=steering
        )

    def counts(self, usage: Usage) -> Chunk:
        return self._chunk([], usage=usage)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None, steering: Steering | None = None) -> Chunk:
        return Chunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, steering=steering
        )
