"""A request's bytes in, a checked `ChatRequest` out, or a `ProtocolError` that names field, value and what is allowed.

The only place where JSON is untyped. Knows no schema of attributes, no profile, no HTTP server and no model; what other
servers' parameters ask for is in `serve.tolerance`.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from pydantic import ValidationError

from serve.protocol import (
    MAX_BEST_OF,
    MAX_CHOICES,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TOP_K,
    SEED_LIMIT,
    AssistantMessage,
    AttributeValues,
    ChatRequest,
    Metadata,
    ProtocolError,
    ProtocolRecord,
    StreamOptions,
    SwapRequest,
    SystemMessage,
    UserMessage,
)
from serve.tolerance import HINTS, MESSAGE_UNSUPPORTED, asks_for_nothing, is_known, unsupported, unused_tools

MAX_DEPTH = 16
MAX_VALUES = 32_768
"""Of one body: thirty for each of a thousand messages. A walk over a megabyte of zeros takes half a second."""
MAX_MESSAGES = 1024
_SHOWN_CHARS = 60
"""How much of a wrong value an error repeats: a megabyte of it helps nobody."""
NEAR = 0.75
"""How alike an unknown field and one of ours must be for a mistake in writing; else it is a client's own note."""

ALLOWED = {
    "messages": "a list of one or more messages",
    "messages[]": "an object with role and content",
    "messages[].role": '"system", "developer", "user" or "assistant"',
    "messages[].content": 'a string, or a list of {"type": "text", "text": string}',
    "messages[].attributes": "an object: attribute name -> number, see GET /v1/attributes",
    "model": "a string, see GET /v1/models",
    "attributes": "an object: attribute name -> number, see GET /v1/attributes",
    "profile": "a string, see GET /v1/attributes",
    "verbosity": '"low", "medium" or "high"',
    "reasoning_effort": '"none", "minimal", "low", "medium", "high", "xhigh" or "max"',
    "metadata": "an object",
    "metadata.attributes": 'a string like "humor=4,verbosity=1"',
    "stream": "true or false",
    "stream_options": "an object with include_usage",
    "stream_options.include_usage": "true or false",
    "max_tokens": "a whole number from 1",
    "max_completion_tokens": "a whole number from 1",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0 and at most 1",
    "top_k": f"a whole number from 0 (off; so is -1) to {MAX_TOP_K}",
    "seed": f"a whole number from {-SEED_LIMIT} to {SEED_LIMIT - 1}",
    "stop": f"a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARS} characters",
    "stop[]": f"a string of 1 to {MAX_STOP_CHARS} characters",
    "n": f"a whole number from 1 to {MAX_CHOICES}",
    "score": "true or false",
    "best_of": f"a whole number from 2 to {MAX_BEST_OF}",
    "user": "a string",
}
"""Field -> what it may be, for error messages; [] stands for any index."""


class Parsed(NamedTuple):
    """A request, and what it asked for that changes no answer and was not used: "store", "messages[].name"."""

    chat: ChatRequest
    unused: frozenset[str]


def parse(body: bytes, max_messages: int = MAX_MESSAGES, ignore_tools: bool = True) -> Parsed:
    """The request in `body`; raises ProtocolError that names the field and what is allowed.

    `ignore_tools`: take `tools` that the model may use and will not.
    """
    raw, unused = _as_object(body, max_messages), set[str]()
    unused.update(tools := unused_tools(raw, ignore_tools))
    if isinstance(messages := raw.get("messages"), list):
        _allow_continuation(raw)
        raw["messages"] = [_message(message, f"messages[{i}]", unused) for i, message in enumerate(messages)]
    raw = _ours({name: value for name, value in raw.items() if name not in tools}, unused)
    try:
        return Parsed(ChatRequest.model_validate(raw), frozenset(unused))
    except ValidationError as error:
        raise _explained(error) from None


def parse_swap(body: bytes) -> str:
    """The policy that the body of an /admin/models request names; raises ProtocolError."""
    try:
        return SwapRequest.model_validate(_as_object(body)).policy
    except ValidationError:
        raise ProtocolError('the body is {"policy": a policy or run folder, or "newest"}', "policy") from None


def _as_object(body: bytes, max_messages: int = MAX_MESSAGES) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise _no_json(f"the body holds {constant}, which is no JSON: send a finite number")

    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=refuse)
    except ProtocolError:
        raise
    except RecursionError:
        raise _no_json(f"the body is nested deeper than {MAX_DEPTH} levels, which no field of a request is") from None
    except UnicodeDecodeError as error:
        raise _no_json(f"the body is no UTF-8 (byte {error.start}): send JSON in UTF-8") from None
    except ValueError as error:
        raise _no_json(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _no_json(f"the body is {_shown(value)}: send a JSON object with messages")
    messages = value.get("messages")
    if isinstance(messages, list) and len(messages) > max_messages:
        raise ProtocolError(f"messages has {len(messages)} entries; allowed: at most {max_messages}", "messages")
    _check_values(value)
    return value


def _no_json(message: str) -> ProtocolError:
    return ProtocolError(message, code="invalid_json")


def _ours(raw: Mapping[str, Any], unused: set[str]) -> dict[str, Any]:
    """`raw` without what asks for nothing and without hints; what would change the answer raises ProtocolError."""
    kept = {}
    for name, value in raw.items():
        if name in ChatRequest.model_fields and name not in HINTS:
            if value is not None:
                kept[name] = value
        elif name == "metadata" and isinstance(value, dict) and "attributes" in value:
            kept[name] = {"attributes": value["attributes"]}
        elif name in HINTS:
            unused.update([] if asks_for_nothing(name, value) else [name])
        elif is_known(name):
            if not asks_for_nothing(name, value):
                raise unsupported(name)
        elif value is None or (asks_for_nothing(name, value) and _is_note(name, ChatRequest)):
            continue
        else:
            kept[name] = value  # for the record to refuse
    if isinstance(options := kept.get("stream_options"), dict):
        hints = {name for name, value in options.items() if _is_note(name, StreamOptions) or value is None}
        unused.update(f"stream_options.{name}" for name in hints if options[name] is not None)
        kept["stream_options"] = {name: value for name, value in options.items() if name not in hints}
    if isinstance(kept.get("attributes"), dict):
        kept["attributes"] = numbers(kept["attributes"])
    return kept


def _allow_continuation(raw: dict[str, Any]) -> None:
    """vLLM's two words for an answer that is begun: where one is, we do what they ask for, whatever they say."""
    last = raw["messages"][-1] if raw["messages"] else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        for name in ("add_generation_prompt", "continue_final_message"):
            if isinstance(raw.get(name), bool):
                del raw[name]


def _message(message: object, where: str, unused: set[str]) -> object:
    """One message with its content as a string; what is no message is left for the record to refuse."""
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    if role in ("tool", "function"):
        raise unsupported(f"{where}.role", f"{role!r} is not supported here: send user and assistant messages")
    kept = {}
    for name, value in message.items():
        if name in AssistantMessage.model_fields:
            if value is not None:
                kept[name] = value
        elif asks_for_nothing(name, value):
            continue
        elif name in MESSAGE_UNSUPPORTED:
            raise unsupported(f"{where}.{name}")
        elif _is_note(name, AssistantMessage):
            unused.add(f"messages[].{name}")
        else:
            kept[name] = value  # for the record to refuse
    if isinstance(kept.get("attributes"), dict):
        kept["attributes"] = numbers(kept["attributes"])
    if isinstance(parts := kept.get("content"), list):
        kept["content"] = "".join(_text(part, f"{where}.content[{i}]", unused) for i, part in enumerate(parts))
    return kept


def _is_note(name: str, record: type[ProtocolRecord]) -> bool:
    """Is a field none of a record's, nor one of them written wrong?"""
    return not difflib.get_close_matches(name[:_SHOWN_CHARS], record.model_fields, 1, NEAR)


def _text(part: object, where: str, unused: set[str]) -> str:
    if isinstance(part, dict):
        if part.get("type") in ("image_url", "input_audio", "file", "video_url"):
            raise unsupported(where, f"is of type {part['type']!r}, which is not supported here: only text is")
        if part.get("type") == "text" and isinstance(text := part.get("text"), str):
            unused.update(f"messages[].content[].{name}" for name in part if name not in ("type", "text"))
            return text
    raise ProtocolError(f'{where} is {_shown(part)}: a part is {{"type": "text", "text": string}}', where)


def _explained(error: ValidationError) -> ProtocolError:
    """The first error as one sentence: the field, its value, what is allowed."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ProtocolError):
        return cause
    # The record's union puts its tag into the path: ("messages", 0, "user", "content") is messages[0].content.
    steps = [step for i, step in enumerate(first["loc"]) if not (i == 2 and first["loc"][0] == "messages")]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    plain = "".join("[]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    if first["type"] == "extra_forbidden":
        return _unknown_field(path, first["loc"])
    roles = ALLOWED["messages[].role"]
    if first["type"] == "missing":
        return _missing(path, ALLOWED.get(plain, "it"))
    if first["type"] == "union_tag_not_found":
        return _missing(f"{path}.role", roles)
    if first["type"] == "union_tag_invalid":
        return ProtocolError(f"{path}.role is {_shown(first['input'].get('role'))}; allowed: {roles}", f"{path}.role")
    return ProtocolError(f"{path} is {_shown(first['input'])}; allowed: {ALLOWED.get(plain, first['msg'])}", path)


def _missing(path: str, allowed: str) -> ProtocolError:
    return ProtocolError(f"{path} is missing: send {allowed}", path, "missing_required_parameter")


def _unknown_field(path: str, loc: Sequence[int | str]) -> ProtocolError:
    name = str(loc[-1])
    records: dict[str, type[ProtocolRecord]] = {
        "system": SystemMessage,
        "developer": SystemMessage,
        "user": UserMessage,
        "assistant": AssistantMessage,
        "stream_options": StreamOptions,
        "metadata": Metadata,
    }
    record = ChatRequest if len(loc) == 1 else records.get(str(loc[-2]), StreamOptions)
    known = list(record.model_fields)
    near = difflib.get_close_matches(name[:_SHOWN_CHARS], known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    message = f"unknown field {_shown(path)}{hint}; known here: {', '.join(known)}"
    return ProtocolError(message, path[:200], "unknown_parameter")


def numbers(values: Mapping[str, Any]) -> AttributeValues:
    """`values` fit to be checked and quoted: an unusable number or an overlong name becomes a short text."""
    return {
        name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…": value if _usable(value) else _shown(value)
        for name, value in values.items()
    }


def _usable(value: object) -> bool:
    # 1e15 keeps an integer of a thousand digits, which no float can hold, from the schema's check.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _check_values(value: object) -> None:
    """Refuses half a surrogate pair, which no tokenizer can read, and what no field of ours has: depth or number."""
    rest: list[tuple[str, int, object]] = [("", 0, value)]
    number = 0
    while rest:
        path, depth, value = rest.pop()
        number += 1
        if number + len(rest) > MAX_VALUES:
            raise _no_json(f"the body has more than {MAX_VALUES} values: send fewer messages, or fewer parts of them")
        name = path.removeprefix(".")
        if depth > MAX_DEPTH:
            deepest = f"{MAX_DEPTH} levels, which no field of a chat request is"
            raise _no_json(f"{_shown(name)} is nested deeper than {deepest}")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ProtocolError(f"{name} holds half of a surrogate pair: send whole Unicode characters", name)
        if isinstance(value, dict):
            items = islice(value.items(), MAX_VALUES)
            rest += [(f"{path}.{key}", depth + 1, text) for key, item in items for text in (item, key)]
        elif isinstance(value, list):
            rest += [(f"{path}[{i}]", depth + 1, item) for i, item in enumerate(value[:MAX_VALUES])]


def _shown(value: object) -> str:
    """The start of a wrong value, as JSON where it is JSON."""
    if isinstance(value, int) and abs(value) > 10**_SHOWN_CHARS:
        return "a huge number"
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
