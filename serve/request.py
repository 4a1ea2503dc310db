"""What goes from the ingress to a policy and comes back: records that cross processes, none of them a caller's.

Knows no JSON, no HTTP, no Ray and no model.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from actors.generation.protocol import Sampling
from data.attributes import Values
from data.conversation import Message
from data.tool_use import ToolChat
from serve.logprobs import ReportedToken
from serve.protocol import ProtocolError
from serve.tools import ToolFormat

Finish: TypeAlias = Literal["stop", "length"]

PROMPT_TOKENS, TURN_TOKENS, VALUE_TOKENS = 64, 16, 4
"""A prompt format adds fewer to a conversation, to a message, and to an attribute's name."""
TOOLS_TOKENS = 1024
"""Chat templates explain to the model how it calls a tool."""


@dataclass(frozen=True)
class PolicyInfo:
    """What a replica reports about its policy."""

    name: str
    schema_json: str
    policy: str = ""
    """Where its weights came from."""
    calibration_json: str = "{}"
    """How a predictor's values stand on the scale of its labels."""
    text_rater_json: str = "{}"
    """Which of its labels are measures of the text."""
    created: int = field(default_factory=lambda: int(time.time()))
    tool_format: ToolFormat | None = None
    """How it writes calls of tools; None = it takes none."""
    no_guidance: str = ""
    """Why its engine takes no guidance, and what to do; "" = it does."""
    base: str = ""
    """The model whose replicas answer, of which this one is an adapter; "" = it has replicas of its own."""
    context: int = field(kw_only=True)
    """Most tokens of prompt and answer together."""


@dataclass(frozen=True)
class Revision:
    """Which checkpoint a model is to be answered from; of two, the higher number counts."""

    policy: str
    """Of an adapter the adapter's folder; "" = it was removed."""
    number: int


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate: all values are checked."""

    system: str
    messages: tuple[Message, ...]
    """User and assistant in turn; an assistant's at the end is the beginning of the answer."""
    labels: tuple[Values | None, ...]
    """Attributes of each earlier answer."""
    attributes: Mapping[str, int]
    """Effective value of every attribute of the schema."""
    sampling: Sampling = field(default_factory=Sampling)
    """How its tokens are chosen; the length is cut to what the prompt leaves of the context."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    stream: bool = False
    """If not, all text comes in the last event, so that the request can start again unnoticed if its replica dies."""
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids to go on with as they are, instead of messages; no template, no attributes."""
    tool_chat: ToolChat | None = None
    """The conversation where tools are called, instead of messages."""
    special_tokens: bool = True
    """Put before such a text what the tokenizer puts first of its own accord?"""
    echo: bool = False
    """Return such a prompt too?"""
    grammar_field: str = "response_format"
    """Where the caller asked for a form of the answer."""
    guided_from: Mapping[str, int] | str | tuple[int, ...] | None = None
    """With guidance: the attributes, or the raw prompt, that the answer is led away from."""
    input_field: str = "messages"
    """Where the caller sent what is answered."""
    revision: Revision | None = None
    """What the ingress wants served; a replica that came up with an older one changes over."""
    adapter: str = ""
    """The adapter that is to answer, of which `revision` is; "" = the replica's policy."""

    @property
    def unguided(self) -> "GenerationRequest | None":
        """The same request with what it is led away from; None = no guidance."""
        away_from = self.guided_from
        if away_from is None:
            return None
        if isinstance(away_from, str | tuple):
            return replace(self, prompt=away_from, guided_from=None)
        return replace(self, attributes=away_from, guided_from=None)

    @property
    def num_rows(self) -> int:
        """Rows of the model that write each answer."""
        return 1 if self.guided_from is None else 2

    @property
    def begun(self) -> str | None:
        """The beginning of the answer, if there is one to continue."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else None

    @property
    def texts(self) -> list[str]:
        """All that is to be tokenized."""
        raw = [self.prompt] if isinstance(self.prompt, str) else []
        called = [] if self.tool_chat is None else self.tool_chat.texts
        return [self.system, *(message.content for message in self.messages), *called, *raw]

    @property
    def input_name(self) -> str:
        return "the conversation" if self.prompt is None else "the prompt"

    @property
    def most_prompt_tokens(self) -> int:
        """A bound on the prompt's tokens, without a tokenizer: none has fewer bytes than one."""
        if isinstance(self.prompt, tuple):
            return len(self.prompt)
        texts = sum(len(text.encode()) for text in self.texts)
        lines = sum(len(name) + VALUE_TOKENS for values in (self.attributes, *self.labels) for name in values or ())
        called = self.tool_chat
        shown = 0 if called is None else len(called.turns) + len(called.tools) + sum(len(t.calls) for t in called.turns)
        around = TURN_TOKENS * (len(self.messages) + shown) + (TOOLS_TOKENS if called is not None else 0)
        return texts + lines + PROMPT_TOKENS + around

    @property
    def most_prompt_tokens_of_rows(self) -> int:
        """The same of all prompts that an answer needs."""
        unguided = self.unguided
        return self.most_prompt_tokens + (unguided.most_prompt_tokens if unguided is not None else 0)


@dataclass(frozen=True)
class Tokenized:
    """A request's prompt as token ids."""

    ids: list[int]
    names: list[str] | None = None
    """Each one's text alone, if it was asked for."""


@dataclass(frozen=True)
class Echo:
    """A prompt as its answer repeats it."""

    text: str
    tokens: tuple[ReportedToken, ...] = ()
    """Only where log-probabilities are asked for."""


@dataclass(frozen=True)
class Started:
    """The request is running or waiting in an engine; always the first event, unless it is a `Failed`."""

    prompt_tokens: int
    unguided_tokens: int = 0
    """Of the prompt that the answer is led away from; 0 = it has one row only."""


@dataclass(frozen=True)
class Delta:
    """More text, or without stream only the number of tokens so far. The last one has `finish`."""

    text: str
    completion_tokens: int
    """So far."""
    finish: Finish | None = None
    tokens: tuple[ReportedToken, ...] = ()
    """New ones, where they are asked for: they may come before their text, which waits for whole characters."""
    echo: Echo | None = None
    """The prompt, where it is asked for: with the first delta that has anything to show."""

    @property
    def shows(self) -> bool:
        """Is there anything that a caller sees?"""
        return bool(self.text or self.tokens) or self.echo is not None


@dataclass(frozen=True)
class Failed:
    """No answer, or no more of it; always the last event."""

    message: str
    status: int
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    prompt_tokens: int = 0
    """That were counted to find that the prompt does not fit: work that its team pays."""

    def problem(self) -> ProtocolError:
        return ProtocolError(self.message, self.param, self.code, self.status, retry_after_s=self.retry_after_s)


Event = Started | Delta | Failed
