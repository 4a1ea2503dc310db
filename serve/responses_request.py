"""OpenAI's newer route, responses: its body becomes a chat completion's, as it asks for the same.

Knows no policy, no HTTP and none of our attributes, which it passes on.
"""

import re
from collections.abc import Mapping
from typing import Any

from serve.json_body import shown
from serve.protocol import ProtocolError
from serve.tolerance import unsupported

RENAMED = {"max_tokens": "max_output_tokens", "messages": "input", "response_format": "text.format"}
"""Of chat completions -> here."""
PARTS = ("input_text", "output_text", "text")
ELSEWHERE = ("messages", "max_tokens", "max_completion_tokens", "response_format", "logprobs", "stop", "n")
"""Fields of chat completions that this route does not have."""
KEPT_STATE = ("previous_response_id", "conversation", "prompt", "background")
"""They ask for what an endpoint without memory cannot do."""
_TAKEN = frozenset((*ELSEWHERE, *KEPT_STATE, "input", "instructions", "max_output_tokens", "truncation", "include"))
_NESTED = ("text", "reasoning")
LOGPROBS = "message.output_text.logprobs"


def chat_body(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same request to chat completions; raises ProtocolError that names the field here."""
    for name in (*ELSEWHERE, *KEPT_STATE):
        if raw.get(name) not in (None, False):
            raise unsupported(name)
    body = {name: value for name, value in raw.items() if name not in _TAKEN and name not in _NESTED}
    instructions = text_of(raw.get("instructions") or "", "instructions")
    begin = [{"role": "system", "content": instructions}] if instructions else []
    limit = raw.get("max_output_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        wrong = f"max_output_tokens is {shown(limit)}; allowed: a whole number from 1"
        raise ProtocolError(wrong, "max_output_tokens")
    if raw.get("truncation") not in (None, "disabled"):
        raise unsupported("truncation", 'is not supported here: send "disabled", or leave it out')
    if LOGPROBS in (include := raw.get("include") or []) or not isinstance(include, list):
        raise unsupported("include")
    if isinstance(tools := raw.get("tools"), list):
        body["tools"] = [_tool(tool) for tool in tools]
    return body | {"messages": [*begin, *_messages(raw.get("input"))], "max_tokens": limit} | _dials_and_form(raw)


def renamed(problem: ProtocolError, num_before: int = 0) -> ProtocolError:
    """A refusal of the chat completion, with the field's name here; `num_before`: messages before those of `input`."""
    name = next((old for old in RENAMED if (problem.param or "").startswith(old)), None)
    if name is None or problem.param is None:
        return problem

    def here(text: str) -> str:
        text = re.sub(r"\bmessages\[(\d+)\]", lambda found: f"messages[{int(found[1]) - num_before}]", text)
        return text.replace(name, RENAMED[name])

    return ProtocolError(here(str(problem)), here(problem.param), problem.code, problem.status, problem.kind)


def _messages(sent: object) -> list[dict[str, Any]]:
    if isinstance(sent, str):
        return [{"role": "user", "content": sent}]
    if not isinstance(sent, list) or not sent:
        what = "missing" if sent is None else shown(sent)
        raise ProtocolError(f"input is {what}; allowed: a text, or a list of messages", "input")
    return [_message(item, f"input[{place}]") for place, item in enumerate(sent)]


def _tool(tool: object) -> object:
    """A function as chat completions have it: one level deeper. What is none stays as it is."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _message(item: object, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ProtocolError(f"{where} is {shown(item)}; allowed: a message with role and content", where)
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
    if kind == "function_call_output":
        output = text_of(item.get("output", ""), f"{where}.output")
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    if kind != "message":
        why = f"is {shown(kind)}, and only messages, function calls and their outputs are supported here"
        raise unsupported(f"{where}.type", why)
    kept = {name: value for name, value in item.items() if name not in ("type", "status", "phase")}
    return kept | {"content": text_of(item.get("content", ""), f"{where}.content")}


def text_of(content: object, where: str) -> str:
    """A text, or a list of text parts, as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ProtocolError(f"{where} is {shown(content)}; allowed: a text, or a list of text parts", where)
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in PARTS or not isinstance(part.get("text"), str):
            raise unsupported(f"{where}[{place}]", 'is no text: only {"type": "input_text", "text": string} is taken')
    return "".join(part["text"] for part in content)


def _dials_and_form(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in `text` and `reasoning`."""
    for name in _NESTED:
        if not isinstance(raw.get(name), dict | None):
            raise ProtocolError(f"{name} is {shown(raw[name])}; allowed: an object", name)
    text, reasoning = raw.get("text") or {}, raw.get("reasoning") or {}
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": form}
    found = {"response_format": form, "verbosity": text.get("verbosity"), "reasoning_effort": reasoning.get("effort")}
    return {name: value for name, value in found.items() if value is not None}
