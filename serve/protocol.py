"""What callers send and get: OpenAI's chat completions with our `attributes`, `profile`, `score` and `best_of`.

Knows no JSON, no schema of attributes, no HTTP server, no Ray and no model.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from data.conversation import Message
from data.errors import UserError
from data.record import Record

MAX_STOPS = 4
"""OpenAI's limit on `stop`."""
MAX_STOP_CHARS = 256
"""A stop string is held back while it may still come, so a very long one would stall the stream."""
MAX_TOP_K = 1000
MAX_CHOICES = 8
MAX_BEST_OF = 16
SEED_LIMIT = 2**63


class ProtocolError(UserError):
    """A request we cannot answer; becomes OpenAI's error object with HTTP status `status`."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.param, self.code, self.status, self.kind, self.retry_after_s = param, code, status, kind, retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error shape; printable whatever the caller sent."""
        param = None if self.param is None else _printable(self.param)
        return {"error": {"message": _printable(str(self)), "type": self.kind, "param": param, "code": self.code}}


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# ---- what a caller sends


class ProtocolRecord(Record):
    """A record of the wire: as strict about types as JSON is ("1" is no number, true is no 1)."""

    model_config = ConfigDict(strict=True)


class SystemMessage(ProtocolRecord):
    """Stands first, once or not at all."""

    role: Literal["system", "developer"]
    content: str


class UserMessage(ProtocolRecord):
    """A question."""

    role: Literal["user"]
    content: str


class AssistantMessage(ProtocolRecord):
    """An earlier answer."""

    role: Literal["assistant"]
    content: str
    attributes: dict[str, Any] | None = None
    """What this answer was asked for, or rated at; without it the answer stands in the prompt without a label line."""


class StreamOptions(ProtocolRecord):
    """OpenAI's options for a streamed answer."""

    include_usage: bool = False
    """Send the token counts in one more chunk before [DONE]?"""


class ChatRequest(ProtocolRecord):
    """Body of POST /v1/chat/completions. `attributes` and `profile` are ours, all else is OpenAI's."""

    messages: list[Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]] = Field(
        min_length=1
    )
    """The conversation: system first (optional), then user and assistant in turn, the user last."""
    model: str | None = None
    """Which policy; None = the one that is served."""
    attributes: dict[str, Any] = Field({})
    """Attribute name -> number in its range; what is left out takes the profile's or the schema's default."""
    profile: str | None = None
    """A named set of defaults, limits and locks, see GET /v1/attributes."""
    stream: bool = False
    """Send the answer in pieces as it comes (server-sent events)?"""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer; None = as long as the server allows."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """OpenAI's newer name for max_tokens."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 = always the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that make up this share."""
    top_k: int = Field(0, ge=0, le=MAX_TOP_K)
    """Sample from this many likeliest tokens; 0 = off."""
    seed: int | None = Field(None, ge=-SEED_LIMIT, lt=SEED_LIMIT)
    """Same seed, same request: same answer."""
    stop: list[str] = Field([], max_length=MAX_STOPS)
    """The answer ends before any of these; a string or a list."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """Answers per request; with a seed, choice i is the answer to seed + i."""
    score: bool = False
    """Rate each answer with the attribute predictor and say what was measured?"""
    best_of: int | None = Field(None, ge=2, le=MAX_BEST_OF)
    """Write so many answers and return the one whose measured attributes are nearest to what was asked for."""
    user: str | None = None
    """The caller's own name for its user; changes nothing in the answer."""

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _usable_stops(cls, stops: list[str]) -> list[str]:
        if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise UserError("a stop string is empty or too long")
        return stops

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        first = 1 if isinstance(self.messages[0], SystemMessage) else 0
        for i, message in enumerate(self.messages[first:], start=first):
            expected = ("user", "assistant")[(i - first) % 2]
            if message.role != expected:
                raise ProtocolError(
                    f"messages[{i}].role is {message.role!r} where {expected!r} is expected: a system message may stand first, "
                    "then user and assistant take turns, beginning with user",
                    f"messages[{i}].role",
                )
            if message.role == "user" and not message.content.strip():
                raise ProtocolError(f"messages[{i}].content is empty: write a question", f"messages[{i}].content")
        if self.messages[-1].role != "user":
            raise ProtocolError(
                f"messages ends with a {self.messages[-1].role} message: the last one must be the user's", "messages"
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ProtocolError(
                f"max_tokens is {self.max_tokens} but max_completion_tokens is {self.max_completion_tokens}: they mean the same, send one",
                "max_tokens",
            )
        if self.best_of is not None and self.n != 1:
            raise ProtocolError(
                f"best_of is {self.best_of} and n is {self.n}: best_of returns one answer, so leave n out", "best_of"
            )
        if self.best_of is not None and self.stream:
            raise ProtocolError(
                "best_of needs every answer whole before it can choose one: leave stream out", "best_of"
            )
        if self.stream_options is not None and not self.stream:
            raise ProtocolError("stream_options is only allowed with stream: true", "stream_options")
        return self

    @property
    def system(self) -> str:
        return self.messages[0].content if isinstance(self.messages[0], SystemMessage) else ""

    @property
    def turns(self) -> tuple[Message, ...]:
        """All messages but the system's."""
        return tuple(Message(m.role, m.content) for m in self.messages if not isinstance(m, SystemMessage))

    @property
    def answers(self) -> list[tuple[str, dict[str, Any] | None]]:
        """(field, attributes) of each earlier answer."""
        return [
            (f"messages[{i}].attributes", m.attributes)
            for i, m in enumerate(self.messages)
            if isinstance(m, AssistantMessage)
        ]

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        """(field, longest answer asked for)."""
        return (
            ("max_tokens", self.max_tokens)
            if self.max_completion_tokens is None
            else ("max_completion_tokens", self.max_completion_tokens)
        )


class SwapRequest(ProtocolRecord):
    """Body of POST /admin/models/{name}."""

    policy: str = Field(min_length=1)
    """A policy folder or a finished run's folder (any URI), or "newest": the newest finished run."""


# ---- what the caller gets


class Usage(ProtocolRecord):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Candidate(ProtocolRecord):
    """One of the answers that best_of chose from."""

    measured: dict[str, float]
    distance: float
    """Mean over the attributes of |measured - asked for| / range: 0 = just as asked."""
    chosen: bool


class Steering(ProtocolRecord):
    """Ours: what the caller asked for, what stood in the prompt, and what came out."""

    requested: dict[str, float]
    """By the caller."""
    effective: dict[str, int]
    """After the profile's and the schema's defaults, rounded."""
    measured: dict[str, float] | None = None
    """By the predictor, of the first choice; with score or best_of only."""
    candidates: list[Candidate] | None = None
    """All answers that best_of chose from."""


class AnswerMessage(ProtocolRecord):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(ProtocolRecord):
    """One answer."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None
    measured: dict[str, float] | None = None
    """Ours: what the predictor says of this answer; with score or best_of only."""


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

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(ProtocolRecord):
    """One answer's part of a chunk."""

    index: int
    delta: ChunkDelta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class Chunk(ProtocolRecord):
    """One server-sent event of a streamed reply."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    """In the last chunk only, and only with stream_options.include_usage."""
    steering: Steering | None = None
    """In the first chunk; once more, with what was measured, after the answers if score was asked for."""


class ErrorDetail(ProtocolRecord):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ProtocolRecord):
    """OpenAI's error shape."""

    error: ErrorDetail
