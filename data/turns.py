"""An answer with what it answers, as raters other than the predictor get it, and what one of them says of it.

Knows no rater.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data.attributes import Values
from data.conversation import Conversation, Message


@dataclass(frozen=True)
class Turn:
    """A conversation up to one answer, which is its last message."""

    system: str
    messages: tuple[Message, ...]

    @property
    def answer(self) -> str:
        return self.messages[-1].content

    @property
    def question(self) -> str:
        """The user's message before it; "" if there is none."""
        return self.messages[-2].content if len(self.messages) > 1 else ""


@dataclass(frozen=True)
class Rated:
    """The values that a rater gives to one answer; an attribute that is in neither mapping simply has none."""

    values: Values = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> why there is no value, in a word or two to count by."""
    again: bool = False
    """The same question may be answered tomorrow."""


def last_turns(conversation: Conversation, num: int) -> list[Turn]:
    """The last `num` answers of a conversation, in order."""
    ends = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    return [Turn(conversation.system, conversation.messages[: end + 1]) for end in ends[len(ends) - num :]]


def number(value: object) -> float | None:
    """`value` as a float if it is a finite number, NumPy's included, else None; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if math.isfinite(value) else None
