"""A request's bytes in, a checked `ChatRequest` out, or a `ProtocolError` that names field, value and what is allowed.

JSON is untyped only here and in `serve.json_body`. Knows no schema of attributes, no profile, no HTTP server and no
model; what other servers' parameters ask for is in `serve.tolerance`.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from serve.allowed import ALLOWED, ALLOWED_IN
from serve.chat_request import AssistantMessage, ChatRequest, Metadata, SystemMessage, ToolMessage, UserMessage
from serve.completion_request import CompletionRequest
from serve.feedback_request import FeedbackRequest
from serve.json_body import MAX_MESSAGES, SHOWN_CHARS, json_object, numbers, shown
from serve.protocol import ProtocolError, ProtocolRecord, SwapRequest
from serve.sampling_fields import StreamOptions
from serve.tokenize_request import TokenizeRequest
from serve.tolerance import HINTS, MESSAGE_UNSUPPORTED, asks_for_nothing, is_known, unsupported, unused_functions
from serve.tool_request import calls_of

NEAR = 0.75
"""How alike an unknown field and one of ours must be for a mistake in writing; else it is a client's own note."""
Sent = TypeVar("Sent", bound=ProtocolRecord)


class Parsed(NamedTuple):
    """A request, and what it asked for that changes no answer and was not used: "store", "messages[].name"."""

    chat: ChatRequest
    unused: frozenset[str]


def parse(body: bytes, max_messages: int = MAX_MESSAGES, ignore_tools: bool = True) -> Parsed:
    """The request in `body`; raises ProtocolError that names the field and what is allowed.

    `ignore_tools`: take `functions` that the model may call and will not.
    """
    return chat_of(json_object(body, max_messages), ignore_tools)


def chat_of(raw: dict[str, Any], ignore_tools: bool = True) -> Parsed:
    """The same of a body that is read; changes `raw`."""
    unused = set[str]()
    unused.update(functions := unused_functions(raw, ignore_tools))
    if isinstance(messages := raw.get("messages"), list):
        _allow_continuation(raw)
        raw["messages"] = [_message(message, f"messages[{i}]", unused) for i, message in enumerate(messages)]
    chat = _checked(ChatRequest, {name: value for name, value in raw.items() if name not in functions}, unused)
    return Parsed(chat, frozenset(unused))


def parse_completion(body: bytes) -> tuple[CompletionRequest, frozenset[str]]:
    """The same for POST /v1/completions."""
    unused = set[str]()
    return _checked(CompletionRequest, json_object(body), unused), frozenset(unused)


def tokenize_of(raw: Mapping[str, Any]) -> TokenizeRequest:
    """A text for POST /tokenize; raises ProtocolError."""
    return _checked(TokenizeRequest, raw, set())


def parse_swap(body: bytes) -> SwapRequest:
    """What an /admin/models request is to serve; raises ProtocolError."""
    try:
        sent = SwapRequest.model_validate(json_object(body))
    except ValidationError:
        sent = SwapRequest()
    if (sent.policy is None) == (sent.adapter is None):
        allowed = '{"policy": a policy or run folder, or "newest"}, or {"adapter": an exported adapter\'s folder}'
        raise ProtocolError(f"the body is {allowed}", "policy")
    return sent


def parse_feedback(body: bytes) -> FeedbackRequest:
    """The body of POST /v1/feedback; raises ProtocolError."""
    return _checked(FeedbackRequest, json_object(body), set())


def _checked(record: type[Sent], raw: Mapping[str, Any], unused: set[str]) -> Sent:
    try:
        return record.model_validate(_ours(record, raw, unused))
    except ValidationError as error:
        raise _explained(record, error) from None


def _ours(record: type[ProtocolRecord], raw: Mapping[str, Any], unused: set[str]) -> dict[str, Any]:
    """`raw` without what asks for nothing and without hints; what would change the answer raises ProtocolError."""
    kept = {}
    for name, value in raw.items():
        if name in record.model_fields and name not in HINTS:
            if value is not None:
                kept[name] = value
        elif name == "metadata" and isinstance(value, dict) and "attributes" in value:
            kept[name] = {"attributes": value["attributes"]}
        elif name in HINTS:
            unused.update([] if asks_for_nothing(name, value) else [name])
        elif is_known(name):
            if not asks_for_nothing(name, value):
                raise unsupported(name)
        elif value is None or (asks_for_nothing(name, value) and _is_note(name, record)):
            continue
        else:
            kept[name] = value  # for the record to refuse
    if isinstance(options := kept.get("stream_options"), dict):
        hints = {name for name, value in options.items() if _is_note(name, StreamOptions) or value is None}
        unused.update(f"stream_options.{name}" for name in hints if options[name] is not None)
        kept["stream_options"] = {name: value for name, value in options.items() if name not in hints}
    for name in ("attributes", "guidance_from"):
        if isinstance(kept.get(name), dict):
            kept[name] = numbers(kept[name])
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
    if role == "function":
        raise unsupported(f"{where}.role", 'is "function", the older name of a tool: send "tool" and tool_call_id')
    record = ToolMessage if role == "tool" else AssistantMessage
    kept: dict[str, Any] = {}
    for name, value in message.items():
        if name == "tool_calls" and value:
            kept[name] = calls_of(value, f"{where}.tool_calls")
        elif name in record.model_fields:
            if value is not None:
                kept[name] = value
        elif asks_for_nothing(name, value):
            continue
        elif name in MESSAGE_UNSUPPORTED:
            raise unsupported(f"{where}.{name}")
        elif _is_note(name, record):
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
    return not difflib.get_close_matches(name[:SHOWN_CHARS], record.model_fields, 1, NEAR)


def _text(part: object, where: str, unused: set[str]) -> str:
    if isinstance(part, dict):
        if part.get("type") in ("image_url", "input_audio", "file", "video_url"):
            raise unsupported(where, f"is of type {part['type']!r}, which is not supported here: only text is")
        if part.get("type") == "text" and isinstance(text := part.get("text"), str):
            unused.update(f"messages[].content[].{name}" for name in part if name not in ("type", "text"))
            return text
    raise ProtocolError(f'{where} is {shown(part)}: a part is {{"type": "text", "text": string}}', where)


def _explained(record: type[ProtocolRecord], error: ValidationError) -> ProtocolError:
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
        return _unknown_field(record, path, first["loc"])
    roles = ALLOWED["messages[].role"]
    if first["type"] == "missing":
        return _missing(path, ALLOWED.get(plain, "it"))
    if first["type"] == "union_tag_not_found":
        return _missing(f"{path}.role", roles)
    if first["type"] == "union_tag_invalid":
        return ProtocolError(f"{path}.role is {shown(first['input'].get('role'))}; allowed: {roles}", f"{path}.role")
    allowed = ALLOWED_IN.get(record, ALLOWED)
    return ProtocolError(f"{path} is {shown(first['input'])}; allowed: {allowed.get(plain, first['msg'])}", path)


def _missing(path: str, allowed: str) -> ProtocolError:
    return ProtocolError(f"{path} is missing: send {allowed}", path, "missing_required_parameter")


def _unknown_field(sent: type[ProtocolRecord], path: str, loc: Sequence[int | str]) -> ProtocolError:
    name = str(loc[-1])
    records: dict[str, type[ProtocolRecord]] = {
        "system": SystemMessage,
        "developer": SystemMessage,
        "user": UserMessage,
        "assistant": AssistantMessage,
        "tool": ToolMessage,
        "stream_options": StreamOptions,
        "metadata": Metadata,
    }
    record = sent if len(loc) == 1 else records.get(str(loc[-2]), StreamOptions)
    known = list(record.model_fields)
    near = difflib.get_close_matches(name[:SHOWN_CHARS], known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    message = f"unknown field {shown(path)}{hint}; known here: {', '.join(known)}"
    return ProtocolError(message, path[:200], "unknown_parameter")
