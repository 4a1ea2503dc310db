"""The reply to one request in OpenAI's shape: its records, and what builds them, whole or chunk by chunk.

Knows no HTTP, no server-sent events and no policy: it is given the texts and the counts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from pydantic import Field

from serve.answer_ids import CHAT, new_id
from serve.logprobs import ChatLogprobs, ReportedToken
from serve.protocol import ProtocolRecord
from serve.request import Echo, Finish

ChatFinish: TypeAlias = Finish | Literal["tool_calls"]
"""tool_calls = the answer ended with calls."""


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


class EarlyStop(ProtocolRecord):
    """What became of best_of with a target_distance."""

    written: int
    """Candidates that were written to their end."""
    distance: float
    """Of the answer."""
    stopped: bool
    """Were others cancelled, because the answer was near enough?"""


class Steering(ProtocolRecord):
    """Ours: what the caller requested, what the prompt held, and what the answer has."""

    requested: dict[str, float]
    """By the caller."""
    effective: dict[str, int]
    """After the profile's and the schema's defaults, rounded."""
    sources: dict[str, str] | None = Field(None, exclude_if=_absent)
    """Attribute -> where its requested value stood ("verbosity", "model", "X-SteerLM-Attributes"), unless that is
    `attributes`."""
    guidance: float | None = Field(None, exclude_if=_absent)
    """As sent, unless that is 1."""
    measured: dict[str, float] | None = Field(None, exclude_if=_absent)
    """By the predictor, of the first choice; with score or best_of only."""
    candidates: list[BestOfCandidate] | None = Field(None, exclude_if=_absent)
    """All answers that best_of chose from; with target_distance those that were measured until one was near enough."""
    early_stop: EarlyStop | None = Field(None, exclude_if=_absent)
    """With target_distance only."""


class CalledFunction(ProtocolRecord):
    """What a call is of."""

    name: str
    arguments: str
    """An object, as JSON."""


class MadeCall(ProtocolRecord):
    """A call of one of the request's tools."""

    index: int | None = Field(None, exclude_if=_absent)
    """Among the answer's calls; in streams only."""
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(ProtocolRecord):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where there are only calls."""
    tool_calls: list[MadeCall] | None = Field(None, exclude_if=_absent)


class Choice(ProtocolRecord):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: ChatFinish
    logprobs: ChatLogprobs | None = None
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
    tool_calls: list[MadeCall] | None = Field(None, exclude_if=_absent)
    """Whole ones, each in a chunk of its own."""
    steering: Steering | None = Field(None, exclude_if=_absent)
    """Ours: with score, in the closing chunk of the first answer. Clients that add up deltas keep it in the message."""


class ChunkChoice(ProtocolRecord):
    """One answer's part of a chunk."""

    index: int
    delta: ChunkDelta
    finish_reason: ChatFinish | None = None
    logprobs: ChatLogprobs | None = None


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
    tokens: Sequence[ReportedToken] = ()
    """Only where log-probabilities are asked for."""
    echo: Echo | None = None
    """The prompt, where it is asked for."""
    completion_tokens: int = 0
    """Its own, without those of other answers."""


@dataclass(frozen=True)
class BestOfChoice:
    """How best_of chose an answer."""

    candidates: list[BestOfCandidate]
    early_stop: EarlyStop | None = None

    @property
    def steering(self) -> dict[str, object]:
        """The fields of a `Steering`."""
        return {"candidates": self.candidates, "early_stop": self.early_stop}


class Reply(Protocol):
    """What builds the reply to one request, in the shape of its route."""

    id: str
    has_done: bool
    """Does a stream end with [DONE]?"""

    def whole(
        self, answers: Sequence[FinishedAnswer], usage: Usage, choice: BestOfChoice | None = None
    ) -> ProtocolRecord: ...

    def opening(self, index: int) -> Sequence[ProtocolRecord]:
        """What a stream begins with, before the answer of that index has anything."""
        ...

    def pieces(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> Sequence[ProtocolRecord]:
        """More of an answer, or the prompt that it repeats, which comes first."""
        ...

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> Sequence[ProtocolRecord]:
        """The end of an answer, with what the predictor found, if it was asked."""
        ...

    def counts(self, usage: Usage) -> Sequence[ProtocolRecord]:
        """The token counts, where they are asked for."""
        ...


class ChatReply:
    """The reply to one request; the whole and all chunks have one id."""

    has_done = True

    def __init__(self, model: str, steering: Steering, num_top: int | None = None):
        """`num_top`: likeliest tokens in each place; None = no log-probabilities are sent."""
        self.id, self.created = new_id(CHAT), int(time.time())
        self.model, self.steering, self._num_top = model, steering, num_top

    def whole(
        self, answers: Sequence[FinishedAnswer], usage: Usage, choice: BestOfChoice | None = None
    ) -> ChatCompletion:
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        chosen = {} if choice is None else choice.steering
        steering = self.steering.model_copy(update={"measured": answers[0].measured, **chosen})
        return ChatCompletion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, steering=steering
        )

    def opening(self, index: int) -> list[Chunk]:
        """The first chunk of an answer: the role, and what was requested."""
        choice = ChunkChoice(index=index, delta=ChunkDelta(role="assistant", content=""))
        return [self._chunk([choice], steering=self.steering)]

    def pieces(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> list[Chunk]:
        choice = ChunkChoice(index=index, delta=ChunkDelta(content=text), logprobs=self._logprobs(tokens))
        return [self._chunk([choice])]

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> list[Chunk]:
        """The last chunk of an answer, with what the predictor found, if it was asked."""
        steering = None if measured is None else self.steering.model_copy(update={"measured": measured})
        choice = ChunkChoice(index=index, delta=ChunkDelta(steering=steering), finish_reason=finish)
        return [self._chunk([choice], steering=steering)]

    def counts(self, usage: Usage) -> list[Chunk]:
        return [self._chunk([], usage=usage)]

    def _choice(self, index: int, answer: FinishedAnswer) -> Choice:
        return Choice(
            index=index,
            message=AnswerMessage(content=answer.text),
            finish_reason=answer.finish,
            logprobs=self._logprobs(answer.tokens),
            measured=answer.measured,
        )

    def _logprobs(self, tokens: Sequence[ReportedToken]) -> ChatLogprobs | None:
        return None if self._num_top is None else ChatLogprobs.of(tokens, self._num_top)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None, steering: Steering | None = None) -> Chunk:
        return Chunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, steering=steering
        )
