"""A conversation in which tools are called: what it may call, its turns, and how chat templates want them.

Knows no template, no tokenizer and no way to read a call from a text.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function that the caller has."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'
    """The JSON schema of its arguments."""

    def shown(self, plain: Callable[[str], str]) -> dict[str, Any]:
        """As chat templates take it, each text made `plain`."""
        function = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return {"type": "function", "function": _plain(function, plain)}


@dataclass(frozen=True)
class ToolCall:
    """One call."""

    name: str
    arguments: str
    """An object, as JSON."""
    id: str = ""

    def shown(self, plain: Callable[[str], str]) -> dict[str, Any]:
        """As chat templates take it, each text made `plain`."""
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        return {"id": plain(self.id), "type": "function", "function": _plain(function, plain)}


@dataclass(frozen=True)
class ToolTurn:
    """One message of a user, an assistant or a tool."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    """An assistant's."""
    call_id: str = ""
    """Of a tool: which call it answers."""
    name: str = ""
    """Of a tool: the function that was called."""


@dataclass(frozen=True)
class ToolChat:
    """The conversation so far."""

    tools: tuple[Tool, ...]
    """What the next answer may call; () = nothing, though earlier ones did."""
    turns: tuple[ToolTurn, ...]

    @property
    def texts(self) -> list[str]:
        """All that is to be tokenized."""
        tools = [text for tool in self.tools for text in (tool.name, tool.description, tool.parameters)]
        calls = [text for turn in self.turns for call in turn.calls for text in (call.name, call.arguments, call.id)]
        return [*tools, *calls, *(text for turn in self.turns for text in (turn.content, turn.call_id, turn.name))]


def _plain(value: Any, plain: Callable[[str], str]) -> Any:
    """The same with every text of it, keys too, made `plain`."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(key): _plain(inner, plain) for key, inner in value.items()}
    return [_plain(inner, plain) for inner in value] if isinstance(value, list) else value
