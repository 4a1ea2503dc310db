"""What callers send to be answered: OpenAI's chat completions with our `attributes`, `profile`, `score` and `best_of`.

Knows no JSON, no schema of attributes, no HTTP server, no Ray and no model.
"""

from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from actors.generation.protocol import MAX_LOGPROBS, Grammar
from serve.protocol import ProtocolError, ProtocolRecord
from serve.response_format import grammar_of
from serve.sampling_fields import SamplingFields
from serve.turns import Turn, answers_of, system_of, turns_of

MAX_BEST_OF = 16

AttributeValues: TypeAlias = Annotated[
    dict[str, int | float | str],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}}),
]
"""Attribute name -> number. Text stands for a value that is no number: the schema refuses it and quotes it."""
Verbosity: TypeAlias = Literal["low", "medium", "high"]
ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class SystemMessage(ProtocolRecord):
    """What holds for the whole conversation; several, wherever they stand, are one text."""

    role: Literal["system", "developer"]
    content: str


class UserMessage(ProtocolRecord):
    """A question, or a part of one."""

    role: Literal["user"]
    content: str


class FunctionCall(ProtocolRecord):
    """What an earlier answer called."""

    name: str
    arguments: str
    """An object, as JSON."""


class SentCall(ProtocolRecord):
    """An earlier call, as the reply had it."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ToolMessage(ProtocolRecord):
    """What a tool returned."""

    role: Literal["tool"]
    content: str
    tool_call_id: str = ""


class AssistantMessage(ProtocolRecord):
    """An earlier answer; as the last message, the beginning of the answer to write."""

    role: Literal["assistant"]
    content: str = ""
    tool_calls: list[SentCall] | None = None
    """What it called."""
    attributes: AttributeValues | None = None
    """What was requested of this answer, or how it was rated; without it the prompt has no label for it."""


class Metadata(ProtocolRecord):
    """OpenAI's place for a caller's own notes; one of them can be for us."""

    attributes: str | None = None
    """As "humor=4,verbosity=1", for clients that cannot send `attributes`."""


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions: OpenAI's, and `attributes`, `guidance`, `profile`, `score`, `best_of`."""

    messages: list[
        Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
    ] = Field(min_length=1)
    """The conversation in any order; an assistant's message at its end is the beginning of the answer."""
    attributes: AttributeValues = Field({})
    """Attribute name -> number in its range; what is left out takes the profile's or the schema's default."""
    guidance_from: AttributeValues | None = None
    """With guidance: values that the answer is led away from, all others as in the request; None = from an answer
    without attributes."""
    profile: str | None = None
    """A named set of defaults, limits and locks, see GET /v1/attributes."""
    verbosity: Verbosity | None = None
    """OpenAI's dial: sets the attribute that GET /v1/attributes names for it, within the profile's range."""
    reasoning_effort: ReasoningEffort | None = None
    """The same, for a schema that has an attribute of this meaning."""
    metadata: Metadata | None = None
    """Only its `attributes` has a meaning here."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer; what does not fit is cut (finish_reason "length"). None = a quarter of the context."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """OpenAI's newer name for max_tokens."""
    score: bool = False
    """Rate each answer with the attribute predictor and return what was measured?"""
    best_of: int | None = Field(None, ge=2, le=MAX_BEST_OF)
    """Write so many answers and return the one whose measured attributes are nearest to the effective ones."""
    target_distance: float | None = Field(None, ge=0, le=1)
    """With best_of: as soon as an answer's distance is at most this, the others are cancelled; None = write all."""
    logprobs: bool = False
    """Return how likely each token of the answer was?"""
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    """With logprobs: so many of the likeliest tokens in each place."""
    response_format: dict[str, Any] | None = None
    """The form that the answer must have: text, json_object or json_schema."""

    tools: list[Any] = []
    """Functions that the answer may call, where the model's chat template has tools (`serve.tool_request`)."""
    tool_choice: Any = "auto"
    """"none", "auto", "required", or the function to call."""

    @field_validator("response_format")
    @classmethod
    def _known_format(cls, wanted: dict[str, Any] | None) -> dict[str, Any] | None:
        return wanted if grammar_of(wanted) else None

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
    def _calls_before_their_results(self) -> "ChatRequest":
        may_follow = False
        for place, message in enumerate(self.messages):
            if message.role == "tool" and not may_follow:
                where = f"messages[{place}].role"
                raise ProtocolError(f'{where} is "tool", and no message with tool_calls stands before it', where)
            if message.role != "tool":
                may_follow = message.role == "assistant" and bool(message.tool_calls)
        if self.has_calls and self.begun:
            wrong = "messages has calls of tools and ends with an assistant's"
            raise ProtocolError(f"{wrong}: end with a user's or a tool's", "messages")
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
        if self.target_distance is not None and self.best_of is None:
            raise ProtocolError("target_distance is only allowed with best_of", "target_distance")
        if self.ignore_eos and self.grammar is not None:
            wrong = "ignore_eos goes on behind the end of an answer, where response_format allows nothing more"
            raise ProtocolError(f"{wrong}: leave one of them out", "ignore_eos")
        if self.guidance_from and "guidance" not in self.model_fields_set:
            raise ProtocolError("guidance_from is only allowed with guidance, a number other than 1", "guidance_from")
        if self.top_logprobs and not self.logprobs:
            raise ProtocolError("top_logprobs is only allowed with logprobs: true", "top_logprobs")
        return self

    @property
    def system(self) -> str:
        return system_of(self.messages)

    @property
    def has_calls(self) -> bool:
        """Did an earlier answer call a tool, or a tool return something?"""
        return any(m.role == "tool" or (m.role == "assistant" and m.tool_calls) for m in self.messages)

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
    def num_top(self) -> int | None:
        """Likeliest tokens to report in each place; None = no log-probabilities at all."""
        return self.top_logprobs if self.logprobs else None

    @property
    def grammar(self) -> Grammar | None:
        """The form that the answer must have."""
        return grammar_of(self.response_format)

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        """(field, longest answer requested)."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return name, getattr(self, name)
