"""What callers send: OpenAI's chat completions with our `attributes`, `profile`, `score` and `best_of`; and its errors.

Knows no JSON, no schema of attributes, no HTTP server, no Ray and no model. Replies: `serve.reply`. What other servers
have and we do not: `serve.tolerance`.
"""

from functools import cached_property
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from data.errors import UserError
from data.printable import printable
from data.record import Record
from serve.turns import Turn, answers_of, system_of, turns_of

MAX_STOPS = 4
"""OpenAI's limit on `stop`."""
MAX_STOP_CHARS = 256
"""A stop string is held back while it may still come, so a very long one would stall the stream."""
MAX_TOP_K = 1000
MAX_CHOICES = 8
MAX_BEST_OF = 16
SEED_LIMIT = 2**63
MAX_MESSAGE_CHARS = 400
MAX_PARAM_CHARS = 200
"""Of an error: what a caller sent may be in it."""
ERROR_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""HTTP status -> OpenAI's `type` of an error; of all others "invalid_request_error"."""

AttributeValues: TypeAlias = Annotated[
    dict[str, int | float | str],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
]
"""Attribute name -> number. Text stands for a value that is no number: the schema refuses it and quotes it."""
Verbosity: TypeAlias = Literal["low", "medium", "high"]
ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ProtocolRecord(Record):
    """A record of the protocol: as strict about types as JSON is ("1" is no number, true is no 1)."""

    model_config = ConfigDict(strict=True)


class ErrorDetail(ProtocolRecord):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ProtocolRecord):
    """OpenAI's error shape."""

    error: ErrorDetail


class ProtocolError(UserError):
    """A request we cannot answer; becomes OpenAI's error object with HTTP status `status`."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str | None = None,
        retry_after_s: int | None = None,
        closes: bool = False,
    ):
        """`closes`: the rest of the request is not read, so its connection ends with the reply."""
        super().__init__(message)
        self.closes = closes
        self.param, self.code, self.status, self.retry_after_s = param, code, status, retry_after_s
        self.kind = kind or ERROR_KINDS.get(status, "invalid_request_error")

    def body(self) -> ErrorBody:
        """On one line, printable and short whatever the caller sent."""
        param = None if self.param is None else printable(self.param, MAX_PARAM_CHARS)
        message = printable(str(self), MAX_MESSAGE_CHARS)
        return ErrorBody(error=ErrorDetail(message=message, type=self.kind, param=param, code=self.code))


class SystemMessage(ProtocolRecord):
    """What holds for the whole conversation; several, wherever they stand, are one text."""

    role: Literal["system", "developer"]
    content: str


class UserMessage(ProtocolRecord):
    """A question, or a part of one."""

    role: Literal["user"]
    content: str


class AssistantMessage(ProtocolRecord):
    """An earlier answer; as the last message, the beginning of the answer to write."""

    role: Literal["assistant"]
    content: str = ""
    attributes: AttributeValues | None = None
    """What was requested of this answer, or how it was rated; without it the prompt has no label for it."""


class StreamOptions(ProtocolRecord):
    """OpenAI's options for a streamed answer."""

    include_usage: bool = False
    """Send the token counts in one more chunk before [DONE]?"""


class Metadata(ProtocolRecord):
    """OpenAI's place for a caller's own notes; one of them can be for us."""

    attributes: str | None = None
    """As "humor=4,verbosity=1", for clients that cannot send `attributes`."""


class ChatRequest(ProtocolRecord):
    """Body of POST /v1/chat/completions: OpenAI's, but for `attributes`, `profile`, `score` and `best_of`."""

    messages: list[Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]] = Field(
        min_length=1
    )
    """The conversation in any order; an assistant's message at its end is the beginning of the answer."""
    model: str | None = None
    """Which policy, also with a profile and attributes: demo, demo:education, demo:education@humor=4,verbosity=1; None
    = the one that is served."""
    attributes: AttributeValues = Field({})
    """Attribute name -> number in its range; what is left out takes the profile's or the schema's default."""
    profile: str | None = None
    """A named set of defaults, limits and locks, see GET /v1/attributes."""
    verbosity: Verbosity | None = None
    """OpenAI's dial: sets the attribute that GET /v1/attributes names for it, within the profile's range."""
    reasoning_effort: ReasoningEffort | None = None
    """The same, for a schema that has an attribute of this meaning."""
    metadata: Metadata | None = None
    """Only its `attributes` has a meaning here."""
    stream: bool = False
    """Send the answer in pieces as it comes (server-sent events)?"""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer; what does not fit is cut (finish_reason "length"). None = a quarter of the context."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """OpenAI's newer name for max_tokens."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 = always the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that make up this share."""
    top_k: int = Field(0, ge=-1, le=MAX_TOP_K)
    """Sample from this many likeliest tokens; 0 or -1 = off."""
    seed: int | None = Field(None, ge=-SEED_LIMIT, lt=SEED_LIMIT)
    """Same seed, same request: same answer."""
    stop: list[str] = Field([], max_length=MAX_STOPS)
    """The answer ends before any of these; a string or a list."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """Answers per request; with a seed, choice i is the answer to seed + i."""
    score: bool = False
    """Rate each answer with the attribute predictor and return what was measured?"""
    best_of: int | None = Field(None, ge=2, le=MAX_BEST_OF)
    """Write so many answers and return the one whose measured attributes are nearest to the effective ones."""
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
    def _can_be_answered(self) -> "ChatRequest":
        if not self.turns:
            raise ProtocolError("messages has no message of a user: the last one asks for the answer", "messages")
        for turn in self.turns:
            if turn.message.role == "user" and not turn.message.content.strip():
                where = f"messages[{turn.sources[0]}].content"
                raise ProtocolError(f"{where} is empty: write a question", where)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        limits = f"max_tokens is {self.max_tokens} but max_completion_tokens is {self.max_completion_tokens}"
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ProtocolError(f"{limits}: they mean the same, send one", "max_tokens")
        if self.best_of is not None and self.n != 1:
            wrong = f"best_of is {self.best_of} and n is {self.n}"
            raise ProtocolError(f"{wrong}: best_of returns one answer, so leave n out", "best_of")
        if self.best_of is not None and self.stream:
            wrong = "best_of needs every answer whole before it can choose one"
            raise ProtocolError(f"{wrong}: leave stream out", "best_of")
        if self.stream_options is not None and not self.stream:
            raise ProtocolError("stream_options is only allowed with stream: true", "stream_options")
        return self

    @property
    def system(self) -> str:
        return system_of(self.messages)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """User and assistant in turn, without the system text; the last may be an answer's beginning."""
        return turns_of(self.messages)

    def labels_of(self, turn: Turn) -> list[tuple[str, AttributeValues]]:
        """(field, attributes) of each of a turn's messages that has some."""
        messages = ((place, self.messages[place]) for place in turn.sources)
        return [
            (f"messages[{place}].attributes", message.attributes)
            for place, message in messages
            if isinstance(message, AssistantMessage) and message.attributes is not None
        ]

    @property
    def answers(self) -> list[Turn]:
        """The earlier answers."""
        return list(answers_of(self.turns))

    @property
    def begun(self) -> Turn | None:
        """The answer to continue."""
        return self.turns[-1] if self.turns[-1].message.role == "assistant" else None

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        """(field, longest answer requested)."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return name, getattr(self, name)


class SwapRequest(ProtocolRecord):
    """Body of POST /admin/models/{name}."""

    policy: str = Field(min_length=1)
    """A policy folder or a finished run's folder (any URI), or "newest": the newest finished run."""
