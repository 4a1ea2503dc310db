"""Tools as callers send them: what the next answer may call, and the conversation with earlier calls.

Knows no JSON text, no HTTP and no model: it is given the form in which the model writes calls.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.generation.protocol import Grammar
from data.tool_use import Tool, ToolCall, ToolChat, ToolTurn
from serve.json_body import MAX_SCHEMA_DEPTH, shown
from serve.protocol import ProtocolError
from serve.tolerance import unsupported
from serve.tools import ToolFormat, call_or, forced_call

CHOICES = '"none", "auto", "required", or {"type": "function", "function": {"name": NAME}} of one of tools'
MAX_TOOLS = 128
"""OpenAI's bound."""


def calls_of(sent: object, where: str) -> list[dict[str, Any]]:
    """An earlier answer's `tool_calls` as records have them: clients send more fields. Raises ProtocolError."""
    if not isinstance(sent, list):
        raise ProtocolError(f"{where} is {shown(sent)}; allowed: a list of calls", where)
    found = []
    for place, call in enumerate(sent):
        at = f"{where}[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ProtocolError(f"{at} is no call: it needs function.name and function.arguments", at)
        arguments = function.get("arguments") or "{}"
        if not isinstance(arguments, str) or not _is_object(arguments):
            wrong = f"{at}.function.arguments is {shown(arguments)}; allowed: an object, as a text of JSON"
            raise ProtocolError(wrong, f"{at}.function.arguments")
        own = call.get("id") if isinstance(call.get("id"), str) else ""
        found.append({"id": own, "function": {"name": function["name"], "arguments": arguments}})
    return found


def _is_object(text: str) -> bool:
    """Is it JSON of an object, of a depth that templates can write?"""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _is_shallow(value, MAX_SCHEMA_DEPTH)


def _is_shallow(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


@dataclass(frozen=True)
class WantedTools:
    """What the next answer may call, or must."""

    form: ToolFormat
    tools: tuple[Tool, ...]
    forced: tuple[str, ...] = ()
    """The answer must be a call of one of these; () = as the model likes."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools)

    def grammar(self, answer: Grammar | None) -> Grammar | None:
        """Of an answer that must be a call; else of a call, or JSON in the form `answer` if that is set."""
        schemas = {tool.name: json.loads(tool.parameters) for tool in self.tools}
        if self.forced:
            return forced_call(self.form, {name: schemas[name] for name in self.forced})
        return None if answer is None else call_or(self.form, schemas, answer)


def wanted_tools(
    sent: Sequence[object], choice: object, form: ToolFormat | None, model: str, may_ignore: bool
) -> WantedTools | None:
    """None = the answer calls nothing. `form`: how the model writes calls; None = it cannot.

    Raises ProtocolError for what is no tool, and where a model without tools must call one, or may not ignore them.
    """
    if not (choice is None or choice in ("none", "auto", "required") or _named(choice) is not None):
        raise ProtocolError(f"tool_choice is {shown(choice)}; allowed: {CHOICES}", "tool_choice")
    must = choice == "required" or _named(choice) is not None
    if must and not sent:
        raise ProtocolError("tool_choice asks for a call, and tools is empty: send the tools too", "tool_choice")
    if not sent or choice == "none":
        return None
    if form is None and must:
        why = f'asks for a call, which model {model!r} cannot make: send "none" or "auto", or leave tools out'
        raise unsupported("tool_choice", why)
    if form is None and not may_ignore:
        why = f"is not for model {model!r}, whose chat template has none, and ignore_tools is off"
        raise unsupported("tools", f'{why}: leave it out, or send tool_choice "none"')
    if form is None:
        return None
    tools = _tools(sent)
    name = _named(choice)
    if name is not None and name not in {tool.name for tool in tools}:
        named = ", ".join(tool.name for tool in tools[:20])
        raise ProtocolError(f"tool_choice names {shown(name)}, and tools has {named}", "tool_choice")
    names = tuple(tool.name for tool in tools) if choice == "required" else () if name is None else (name,)
    return WantedTools(form, tools, names)


def _named(choice: object) -> str | None:
    """The function that a choice names, in the shape of either route."""
    if not isinstance(choice, Mapping) or choice.get("type", "function") != "function":
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _tools(sent: Sequence[object]) -> tuple[Tool, ...]:
    if len(sent) > MAX_TOOLS:
        raise ProtocolError(f"tools has {len(sent)} entries; allowed: at most {MAX_TOOLS}", "tools")
    tools = tuple(_tool(tool, f"tools[{place}]") for place, tool in enumerate(sent))
    names = [tool.name for tool in tools]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ProtocolError(f"tools has {shown(doubled)} more than once: names are unique", "tools")
    return tools


def _tool(sent: object, where: str) -> Tool:
    if isinstance(sent, Mapping) and sent.get("type", "function") != "function":
        raise unsupported(f"{where}.type", f"is {shown(sent['type'])}, and only functions are supported here")
    function = sent.get("function") if isinstance(sent, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not 0 < len(name) <= 64:
        raise ProtocolError(f"{where}.function.name is missing, or longer than 64 characters", f"{where}.function.name")
    description, parameters = function.get("description") or "", function.get("parameters") or {"type": "object"}
    for field, value, kind, what in (
        ("description", description, str, "a text"),
        ("parameters", parameters, Mapping, "a JSON schema"),
    ):
        if not isinstance(value, kind):
            at = f"{where}.function.{field}"
            raise ProtocolError(f"{at} is {shown(value)}; allowed: {what}", at)
    return Tool(name, description, json.dumps(parameters))


def turn_places(messages: Sequence[Any]) -> list[list[int]]:
    """The places of each turn's messages, without system texts: calls of one answer may come in several messages.

    Micro-example: user, assistant (call), assistant (call), tool, tool -> [0], [1, 2], [3], [4].
    """
    turns: list[list[int]] = []
    for place, message in enumerate(messages):
        if message.role == "assistant" and turns and messages[turns[-1][-1]].role == "assistant":
            turns[-1].append(place)
        elif message.role not in ("system", "developer"):
            turns.append([place])
    return turns


def tool_chat(messages: Sequence[Any], wanted: WantedTools | None) -> ToolChat:
    """The conversation with earlier calls and their results; `messages` are checked ones."""
    names: dict[str, str] = {}
    turns = []
    for places in turn_places(messages):
        own = [messages[place] for place in places]
        sent = [call for message in own for call in getattr(message, "tool_calls", None) or ()]
        calls = tuple(ToolCall(call.function.name, call.function.arguments, call.id) for call in sent)
        names |= {call.id: call.name for call in calls}
        content = "\n\n".join(message.content for message in own if message.content)
        call_id = own[0].tool_call_id if own[0].role == "tool" else ""
        turns.append(ToolTurn(own[0].role, content, calls, call_id, names.get(call_id, "")))
    return ToolChat(() if wanted is None else wanted.tools, tuple(turns))
