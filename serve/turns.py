"""A request's messages as the conversation that a policy was trained on: one system text, then turns that alternate.

Training has no other conversations, and many chat templates refuse others. Knows no schema, no template and no HTTP.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from data.conversation import Message

BLANK_LINE = "\n\n"


class Said(Protocol):
    """A message as it was sent."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


@dataclass(frozen=True)
class Turn:
    """Messages of one role that follow each other."""

    message: Message
    sources: tuple[int, ...]
    """Their places in the request's list."""


def system_of(messages: Iterable[Said]) -> str:
    """All system texts, wherever they stand, as paragraphs."""
    return BLANK_LINE.join(m.content for m in messages if _is_system(m) and m.content)


def turns_of(messages: Sequence[Said]) -> tuple[Turn, ...]:
    """User and assistant in turn: what one of them said in several messages becomes paragraphs of one turn.

    Micro-example: user "a", system "s", user "b", assistant "c" -> user "a\\n\\nb" (0, 2), assistant "c" (3).
    """
    turns: list[Turn] = []
    for place, message in enumerate(messages):
        if _is_system(message):
            continue
        if turns and turns[-1].message.role == message.role:
            last = turns[-1]
            content = BLANK_LINE.join(filter(None, (last.message.content, message.content)))
            turns[-1] = Turn(replace(last.message, content=content), (*last.sources, place))
        else:
            turns.append(Turn(Message(message.role, message.content), (place,)))
    return tuple(turns)


def answers_of(turns: Sequence[Turn]) -> Iterator[Turn]:
    """The earlier answers, without one that is to be continued."""
    return (turn for turn in turns[:-1] if turn.message.role == "assistant")


def _is_system(message: Said) -> bool:
    return message.role in ("system", "developer")
