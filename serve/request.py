"""What goes from the ingress to a policy and comes back: records that cross processes, none of them a caller's.

Knows no JSON, no HTTP, no Ray and no model.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from data.attributes import Values
from data.conversation import Message
from serve.protocol import ProtocolError

PROMPT_TOKENS, TURN_TOKENS, VALUE_TOKENS = 64, 16, 4
"""A prompt format adds fewer to a conversation, to a message, and to an attribute's name."""


@dataclass(frozen=True)
class PolicyInfo:
    """What a replica reports about its policy."""

    name: str
    schema_json: str
    policy: str = ""
    """Where its weights came from."""
    calibration_json: str = "{}"
    """How a predictor's values stand on the scale of its labels."""
    created: int = field(default_factory=lambda: int(time.time()))
    context: int = field(kw_only=True)
    """Most tokens of prompt and answer together."""


@dataclass(frozen=True)
class Revision:
    """Which checkpoint a model is to be answered from; of two, the higher number counts."""

    policy: str
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
    max_tokens: int
    """Of the answer; cut to what the prompt leaves of the context."""
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    stream: bool = False
    """If not, all text comes in the last event, so that the request can start again unnoticed if its replica dies."""
    cache_salt: str = ""
    """Whose prompts may share computed prefixes with this one: how soon an answer begins tells what others sent."""
    revision: Revision | None = None
    """What the ingress wants served; a replica that came up with an older one changes over."""

    @property
    def begun(self) -> str | None:
        """The beginning of the answer, if there is one to continue."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else None

    @property
    def most_prompt_tokens(self) -> int:
        """A bound on the prompt's tokens, without a tokenizer: none has fewer bytes than one."""
        texts = len(self.system.encode()) + sum(len(message.content.encode()) for message in self.messages)
        lines = sum(len(name) + VALUE_TOKENS for values in (self.attributes, *self.labels) for name in values or ())
        return texts + lines + PROMPT_TOKENS + TURN_TOKENS * len(self.messages)


@dataclass(frozen=True)
class Started:
    """The request is running or waiting in an engine; always the first event, unless it is a `Failed`."""

    prompt_tokens: int


@dataclass(frozen=True)
class Delta:
    """More text, or without stream only the number of tokens so far. The last one has `finish`."""

    text: str
    completion_tokens: int
    """So far."""
    finish: Literal["stop", "length"] | None = None


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
