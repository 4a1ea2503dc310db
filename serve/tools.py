"""Tool calls in an answer's text, in the forms that models are trained on; and the grammar that forces one.

Text in, text and calls out, whole or as it comes: never a part of a call as text, never a part of a marker. Knows no
tokenizer, no HTTP and no model.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from actors.generation.protocol import Grammar
from data.tool_use import ToolCall
from serve.json_scan import JsonScan

ToolFormat: TypeAlias = Literal["hermes", "llama"]
"""`<tool_call>{json}</tool_call>` (Hermes, Qwen), or an answer that is JSON (Llama 3). Mistral's calls begin with a
control token, which decoding leaves out: its models take no tools here."""

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_WHITESPACE = 2
"""Blanks in one place of a call: a model that likes them would write nothing else until max_tokens."""
PYTHON_TAG = "<|python_tag|>"
OTHER_FORMS = ("[TOOL_CALLS]", "<function=")
"""Of templates whose calls are no JSON, or begin with what decoding leaves out: Mistral, Qwen 3 Coder."""
MARKERS = {"hermes": OPEN, "llama": ""}
_BEGINNING = {"hermes": re.compile(r"\s*"), "llama": re.compile(rf"\s*(?:{re.escape(PYTHON_TAG)})?[ ;\n]*\s*")}
"""What may stand before a call, behind its marker."""
_BLANKS = re.compile(r"\s*")
_DECODER = json.JSONDecoder()
_UNREAD, _BROKEN = object(), object()
"""Instead of a value."""


def format_of(chat_template: str) -> ToolFormat | None:
    """How a model with this template writes its calls; None = its template has no tools, or calls of another form."""
    if "tools" not in chat_template or any(mark in chat_template for mark in OTHER_FORMS):
        return None
    if OPEN in chat_template:
        return "hermes"
    is_llama = PYTHON_TAG in chat_template or ('{"name":' in chat_template and '"parameters":' in chat_template)
    return "llama" if is_llama else None


@dataclass
class Parsed:
    """What a piece of text brought."""

    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)


class ToolCallReader:
    """Reads one answer, each part of it once. What is no call of a known tool stays text, word by word."""

    def __init__(self, form: ToolFormat, names: Collection[str]):
        """`names`: the tools of the request."""
        self._form, self._names = form, frozenset(names)
        self._held = ""
        self._inside = form == "llama"  # behind a marker; Llama needs none where the answer begins
        self._plain = False  # no call can come any more
        self._scan = JsonScan(CLOSE)  # of what is behind a marker
        self._value: Any = _UNREAD
        self.num_calls = 0

    def push(self, text: str, last: bool = False) -> Parsed:
        """More of the answer; with `last` all that is left."""
        parsed = Parsed()
        self._held += text
        while self._held and not self._plain:
            before = (self._held, self._inside)
            if self._inside:
                self._read_call(parsed, last)
            else:
                self._read_text(parsed, last)
            if before == (self._held, self._inside):  # the rest of it has yet to come
                return parsed
        parsed.content += "" if self.num_calls and self._held.isspace() else self._held
        self._held = ""
        return parsed

    def _read_text(self, parsed: Parsed, last: bool) -> None:
        """Up to the next marker, or to what may be the beginning of one; blanks before a call are none of the text."""
        marker = MARKERS[self._form]
        at = self._held.find(marker)
        if at >= 0:
            parsed.content += self._held[:at].rstrip()
            self._held, self._inside = self._held[at + len(marker) :], True
            return
        end = len(self._held) if last else len(self._held) - _pending(self._held, marker)
        parsed.content += "" if self.num_calls and self._held[:end].isspace() else self._held[:end]
        self._held = self._held[end:]

    def _read_call(self, parsed: Parsed, last: bool) -> None:
        """The calls behind a marker, once they are whole; what they turn out not to be is text."""
        found = self._found(last)
        if found is None and not last and _may_be_call(self._form, self._held):
            return
        self._scan, self._value = JsonScan(CLOSE), _UNREAD
        if found is not None and found[0] and all(call.name in self._names for call in found[0]):
            parsed.calls += found[0]
            self.num_calls += len(found[0])
            self._held, self._inside = found[1], self._form == "llama"
            return
        parsed.content += MARKERS[self._form]
        self._inside, self._plain = False, self._form != "hermes"
        if found is not None and not self._plain:
            whole = self._held
            self._held = found[1]
            parsed.content += whole[: len(whole) - len(self._held)]

    def _found(self, last: bool) -> tuple[list[ToolCall], str] | None:
        """(calls, what stands behind them), or None if more must come; no calls = what stands there is none."""
        scan = self._scan
        scan.read(self._held)
        if scan.end is not None and self._value is _UNREAD:
            begin = _BEGINNING[self._form].match(self._held).end()  # type: ignore[union-attr]
            self._value = _value_of(self._held[begin : scan.end])
        if self._value in (_UNREAD, _BROKEN) or scan.end is None:
            at = scan.mark_at if self._form == "hermes" else None
            return None if at is None else ([], self._held[at + len(CLOSE) :])
        rest = self._held[scan.end :]
        if self._form == "hermes":
            rest = rest.lstrip()
            if not last and len(rest) < len(CLOSE) and CLOSE.startswith(rest):
                return None  # its end has not come yet
            rest = rest.removeprefix(CLOSE)
        return _calls([self._value]), rest


def _pending(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the start of `marker`, with the blanks before them."""
    length = next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if marker.startswith(text[-n:])), 0)
    kept = text[: len(text) - length]
    return len(text) - len(kept.rstrip())


def _may_be_call(form: ToolFormat, held: str) -> bool:
    """Can what stands behind a marker still become one?"""
    begin = _BLANKS.match(held).end()  # type: ignore[union-attr]
    text = held[begin : begin + len(PYTHON_TAG)]
    if form == "hermes":
        return not text or text[0] == "{"
    return not text or text[0] in "{;" or PYTHON_TAG.startswith(text)


def _value_of(text: str) -> Any:
    """Of a whole object or list; _BROKEN for anything else."""
    try:
        return _DECODER.decode(text) if text.startswith(("{", "[")) else _BROKEN
    except (ValueError, RecursionError):
        return _BROKEN


def _calls(values: Sequence[Any]) -> list[ToolCall]:
    """The calls, if each of `values` is one; else none."""
    calls = []
    for value in values:
        name = value.get("name") if isinstance(value, dict) else None
        arguments = value.get("arguments", value.get("parameters", {})) if isinstance(value, dict) else None
        if isinstance(arguments, str):  # some models write the object as text
            arguments = _value_of(arguments.strip())
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return []
        calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
    return calls


def forced_call(form: ToolFormat, tools: Mapping[str, Mapping[str, Any]]) -> Grammar:
    """The grammar of an answer that is one call of one of `tools`: name -> JSON schema of its arguments.

    `ToolCallReader` reads what it gives.
    """
    return _tag(_call_format(form, tools))


def call_or(form: ToolFormat, tools: Mapping[str, Mapping[str, Any]], answer: Grammar) -> Grammar:
    """The grammar of an answer that is a call, or JSON in the form `answer`."""
    schema = json.loads(answer.text) if answer.kind == "json_schema" else {"type": "object"}
    either = [_call_format(form, tools), _json_format(schema)]
    return _tag({"type": "or", "elements": either})


def _tag(format: Mapping[str, Any]) -> Grammar:
    return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": format}))


def _call_format(form: ToolFormat, tools: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A call in xgrammar's notation."""
    call = _json_format(_call_schema(form, tools))
    if form == "llama":
        return call
    begin, end = ({"type": "const_string", "value": value} for value in (f"{OPEN}\n", f"\n{CLOSE}"))
    return {"type": "sequence", "elements": [begin, call, end]}


def _json_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MAX_WHITESPACE}


def _call_schema(form: ToolFormat, tools: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    key = "parameters" if form == "llama" else "arguments"
    bodies = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, key: {"$ref": f"#/$defs/{number}"}},
            "required": ["name", key],
            "additionalProperties": False,
        }
        for number, name in enumerate(tools)
    ]
    # Each tool's references are to its own root.
    schemas = {str(number): _moved(schema, f"#/$defs/{number}") for number, schema in enumerate(tools.values())}
    return {"anyOf": bodies, "$defs": schemas}


def _moved(value: Any, root: str) -> Any:
    """A schema whose references begin at `root`."""
    if isinstance(value, list):
        return [_moved(inner, root) for inner in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: root + inner[1:] if key == "$ref" and isinstance(inner, str) and inner[:1] == "#" else _moved(inner, root)
        for key, inner in value.items()
    }
