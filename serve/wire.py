"""Every record that crosses a process at the endpoint: OpenAI's chat completions with our `attributes` and `profile`, and ours behind them.

Bytes in, a checked request or a `WireProblem` with OpenAI's error shape out. Knows no schema of attributes, no HTTP server, no Ray and no model.
"""

import difflib
import json
import re
import time
import uuid
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from data.attributes import AttributeProblem, Values
from data.conversation import Message
from data.record import Record

MAX_STOPS = 4
"""OpenAI's limit on `stop`."""
MAX_STOP_CHARS = 256
"""A stop string is held back while it may still come, so a very long one would stall the stream."""
MAX_TOP_K = 1000
SEED_LIMIT = 2**63
MAX_DEPTH = 16
_SHOWN_CHARS = 60
"""How much of a wrong value an error repeats: a megabyte of it helps nobody."""


class WireProblem(ValueError):
    """A request we cannot answer; becomes OpenAI's error object with HTTP status `status`."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.param, self.code, self.status, self.kind, self.retry_after_s = param, code, status, kind, retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error shape; printable whatever the caller sent."""
        param = None if self.param is None else _printable(self.param)
        return {"error": {"message": _printable(str(self)), "type": self.kind, "param": param, "code": self.code}}


# ---- what a caller sends


class WireRecord(Record):
    """A record of the wire: as strict about types as JSON is ("1" is no number, true is no 1)."""

    model_config = ConfigDict(strict=True)


class SystemMessage(WireRecord):
    """Stands first, once or not at all."""

    role: Literal["system", "developer"]
    content: str


class UserMessage(WireRecord):
    """A question."""

    role: Literal["user"]
    content: str


class AssistantMessage(WireRecord):
    """An earlier answer."""

    role: Literal["assistant"]
    content: str
    attributes: dict[str, Any] | None = None
    """What this answer was asked for, or rated at; without it the answer stands in the prompt without a label line."""


class StreamOptions(WireRecord):
    """OpenAI's options for a streamed answer."""

    include_usage: bool = False
    """Send the token counts in one more chunk before [DONE]?"""


class ChatRequest(WireRecord):
    """Body of POST /v1/chat/completions. `attributes` and `profile` are ours, all else is OpenAI's."""

    messages: list[Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]] = Field(min_length=1)
    """The conversation: system first (optional), then user and assistant in turn, the user last."""
    model: str | None = None
    """Which policy; None = the one that is served."""
    attributes: dict[str, Any] = Field({})
    """Attribute name -> number in its range; what is left out takes the profile's or the schema's default."""
    profile: str | None = None
    """A named set of defaults, limits and locks, see GET /v1/attributes."""
    stream: bool = False
    """Send the answer in pieces as it comes (server-sent events)?"""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer; None = as long as the server allows."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """OpenAI's newer name for max_tokens."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 = always the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that make up this share."""
    top_k: int = Field(0, ge=0, le=MAX_TOP_K)
    """Sample from this many likeliest tokens; 0 = off."""
    seed: int | None = Field(None, ge=-SEED_LIMIT, lt=SEED_LIMIT)
    """Same seed, same request: same answer."""
    stop: list[str] = Field([], max_length=MAX_STOPS)
    """The answer ends before any of these; a string or a list."""
    n: int = Field(1, ge=1, le=1)
    """Answers per request."""
    user: str | None = None
    """The caller's own name for its user; changes nothing in the answer."""

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _usable_stops(cls, stops: list[str]) -> list[str]:
        if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise ValueError("a stop string is empty or too long")
        return stops

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        first = 1 if isinstance(self.messages[0], SystemMessage) else 0
        for i, message in enumerate(self.messages[first:], start=first):
            expected = ("user", "assistant")[(i - first) % 2]
            if message.role != expected:
                raise WireProblem(
                    f"messages[{i}].role is {message.role!r} where {expected!r} is expected: a system message may stand first, "
                    "then user and assistant take turns, beginning with user",
                    f"messages[{i}].role",
                )
            if message.role == "user" and not message.content.strip():
                raise WireProblem(f"messages[{i}].content is empty: write a question", f"messages[{i}].content")
        if self.messages[-1].role != "user":
            raise WireProblem(f"messages ends with a {self.messages[-1].role} message: the last one must be the user's", "messages")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise WireProblem(
                f"max_tokens is {self.max_tokens} but max_completion_tokens is {self.max_completion_tokens}: they mean the same, send one", "max_tokens"
            )
        if self.stream_options is not None and not self.stream:
            raise WireProblem("stream_options is only allowed with stream: true", "stream_options")
        return self

    @property
    def system(self) -> str:
        return self.messages[0].content if isinstance(self.messages[0], SystemMessage) else ""

    @property
    def turns(self) -> tuple[Message, ...]:
        """All messages but the system's."""
        return tuple(Message(m.role, m.content) for m in self.messages if not isinstance(m, SystemMessage))

    @property
    def answers(self) -> list[tuple[str, dict[str, Any] | None]]:
        """(field, attributes) of each earlier answer."""
        return [(f"messages[{i}].attributes", m.attributes) for i, m in enumerate(self.messages) if isinstance(m, AssistantMessage)]

    @property
    def answer_limit(self) -> tuple[str, int | None]:
        """(field, longest answer asked for)."""
        return ("max_tokens", self.max_tokens) if self.max_completion_tokens is None else ("max_completion_tokens", self.max_completion_tokens)


ALLOWED = {
    "messages": "a list of one or more messages",
    "messages[]": "an object with role and content",
    "messages[].role": '"system" (first), "user" or "assistant"',
    "messages[].content": 'a string, or a list of {"type": "text", "text": string}',
    "messages[].attributes": "an object: attribute name -> number, see GET /v1/attributes",
    "model": "a string, see GET /v1/models",
    "attributes": "an object: attribute name -> number, see GET /v1/attributes",
    "profile": "a string, see GET /v1/attributes",
    "stream": "true or false",
    "stream_options": "an object with include_usage",
    "stream_options.include_usage": "true or false",
    "max_tokens": "a whole number from 1",
    "max_completion_tokens": "a whole number from 1",
    "temperature": "a number from 0 to 2",
    "top_p": "a number above 0 and at most 1",
    "top_k": f"a whole number from 0 (off) to {MAX_TOP_K}",
    "seed": f"a whole number from {-SEED_LIMIT} to {SEED_LIMIT - 1}",
    "stop": f"a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARS} characters",
    "stop[]": f"a string of 1 to {MAX_STOP_CHARS} characters",
    "n": "1: send several requests for several answers",
    "user": "a string",
}
"""Field -> what it may be, for error messages; [] stands for any index."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI's API that we do not support -> values (besides null) that ask for nothing, so that sending them is no mistake."""

NEUTRAL_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}
"""The same inside a message: clients send an earlier reply back as they got it, with its empty fields."""


def parse(body: bytes) -> ChatRequest:
    """The request in `body`; raises WireProblem naming the field and what is allowed."""
    raw = _as_object(body)
    _check_texts(raw)
    raw = _supported(raw, ChatRequest.model_fields, NEUTRAL, "")
    if isinstance(raw.get("messages"), list):
        raw["messages"] = [_message(message, f"messages[{i}]") for i, message in enumerate(raw["messages"])]
    try:
        return ChatRequest.model_validate(raw)
    except ValidationError as error:
        raise _explained(error) from None


def _as_object(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise WireProblem(f"the body holds {constant}, which is no JSON: send a finite number", code="invalid_json")

    try:
        value = json.loads(body.decode(), parse_constant=refuse)
    except WireProblem:
        raise
    except RecursionError:
        raise WireProblem("the body is nested too deeply to be a chat request", code="invalid_json") from None
    except UnicodeDecodeError as error:
        raise WireProblem(f"the body is no UTF-8 (byte {error.start}): send JSON in UTF-8", code="invalid_json") from None
    except ValueError as error:
        raise WireProblem(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise WireProblem(f"the body is {_shown(value)}: send a JSON object with messages", code="invalid_json")
    return value


def _supported(raw: Mapping[str, Any], known: Container[str], neutral: Mapping[str, tuple[object, ...]], where: str) -> dict[str, Any]:
    """`raw` without nulls and without fields that ask for nothing; raises WireProblem for a field that asks for what we do not do."""
    kept = {}
    for name, value in raw.items():
        if value is None and (name in known or name in neutral):
            continue
        if name in neutral:
            if any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in neutral[name]):
                continue
            raise WireProblem(f"{where}{name} is not supported here: leave it out", f"{where}{name}", "unsupported_parameter")
        kept[name] = value
    return kept


def _message(message: object, where: str) -> object:
    """One message with its content as a string; what is no message is left for the record to refuse."""
    if not isinstance(message, dict):
        return message
    if message.get("role") in ("tool", "function"):
        raise WireProblem(f"{where}.role {message['role']!r} is not supported here: send user and assistant messages", f"{where}.role", "unsupported_parameter")
    kept = _supported(message, AssistantMessage.model_fields, NEUTRAL_IN_MESSAGE, f"{where}.")
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(_text(part, f"{where}.content[{i}]") for i, part in enumerate(kept["content"]))
    return kept


def _text(part: object, where: str) -> str:
    if isinstance(part, dict) and part.get("type") in ("image_url", "input_audio", "file"):
        raise WireProblem(f"{where} is of type {part['type']!r}, which is not supported here: only text is", where, "unsupported_parameter")
    if isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
        return part["text"]
    raise WireProblem(f'{where} is {_shown(part)}: a part is {{"type": "text", "text": string}}', where)


def _explained(error: ValidationError) -> WireProblem:
    """The first mistake as one sentence: the field, what it got, what is allowed."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, WireProblem):
        return cause
    # The record's union puts its tag into the path: ("messages", 0, "user", "content") is messages[0].content.
    steps = [step for i, step in enumerate(first["loc"]) if not (i == 2 and first["loc"][0] == "messages")]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    plain = "".join("[]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    if first["type"] == "extra_forbidden":
        return _unknown_field(path, first["loc"])
    if first["type"] == "missing":
        return WireProblem(f"{path} is missing: send {ALLOWED.get(plain, 'it')}", path, "missing_required_parameter")
    if first["type"] == "union_tag_not_found":
        return WireProblem(f"{path}.role is missing: send {ALLOWED['messages[].role']}", f"{path}.role", "missing_required_parameter")
    if first["type"] == "union_tag_invalid":
        role = first["input"].get("role")
        return WireProblem(f"{path}.role is {_shown(role)}; allowed: {ALLOWED['messages[].role']}", f"{path}.role")
    allowed = ALLOWED.get(plain)
    return WireProblem(f"{path} is {_shown(first['input'])}; allowed: {allowed or first['msg']}", path)


def _unknown_field(path: str, loc: Sequence[int | str]) -> WireProblem:
    name = str(loc[-1])
    records: dict[str, type[WireRecord]] = {
        "system": SystemMessage,
        "developer": SystemMessage,
        "user": UserMessage,
        "assistant": AssistantMessage,
        "stream_options": StreamOptions,
    }
    record = ChatRequest if len(loc) == 1 else records.get(str(loc[-2]), StreamOptions)
    known = list(record.model_fields)
    near = difflib.get_close_matches(name[:_SHOWN_CHARS], known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return WireProblem(f"unknown field {_shown(path)}{hint}; known here: {', '.join(known)}", path[:200], "unknown_parameter")


def attribute_problem(problem: AttributeProblem, where: str = "attributes") -> WireProblem:
    """A wrong attribute as a wire problem of the field that holds it."""
    return WireProblem(f"{where}: {problem}", f"{where}.{problem.attribute}", "invalid_attribute")


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` fit to be checked and quoted: an overlong name or a value that is no usable number becomes a short text, which no schema accepts."""
    return {name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…": value if _usable(value) else _shown(value) for name, value in values.items()}


def _usable(value: object) -> bool:
    # 1e15 keeps an integer of a thousand digits, which no float can hold, from the schema's check.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _check_texts(value: object) -> None:
    """Refuses half a surrogate pair, which JSON can spell and no tokenizer can read, and nesting that no field of ours has."""
    rest: list[tuple[str, int, object]] = [("", 0, value)]
    while rest:
        path, depth, value = rest.pop()
        name = path.removeprefix(".")
        if depth > MAX_DEPTH:
            raise WireProblem(f"{_shown(name)} is nested deeper than {MAX_DEPTH} levels, which no field of a chat request is", code="invalid_json")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise WireProblem(f"{name} holds half of a surrogate pair: send whole Unicode characters", name)
        if isinstance(value, dict):
            rest += [(f"{path}.{key}", depth + 1, text) for key, item in value.items() for text in (item, key)]
        elif isinstance(value, list):
            rest += [(f"{path}[{i}]", depth + 1, item) for i, item in enumerate(value)]


def _shown(value: object) -> str:
    """The start of a wrong value, as JSON where it is JSON."""
    if isinstance(value, int) and abs(value) > 10**_SHOWN_CHARS:
        return "a huge number"
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# ---- what goes to the policy and comes back


@dataclass(frozen=True)
class Card:
    """What a policy says of itself."""

    name: str
    schema_json: str
    context_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Job:
    """A checked request on its way to a policy."""

    system: str
    messages: tuple[Message, ...]
    labels: tuple[Values | None, ...]
    attributes: Mapping[str, int]
    max_tokens: int | None
    """None = as many as the context and the server's limit leave room for."""
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """The job has a slot or waits for one; always the first event, unless it is a `Failed`."""

    prompt_tokens: int


@dataclass(frozen=True)
class Delta:
    """More text. The last one has `finish`."""

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

    def problem(self) -> WireProblem:
        kind = {400: "invalid_request_error", 429: "rate_limit_error"}.get(self.status, "server_error")
        return WireProblem(self.message, self.param, self.code, self.status, kind, self.retry_after_s)


Event = Started | Delta | Failed


# ---- what the caller gets


class Usage(WireRecord):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Steering(WireRecord):
    """Ours: what the caller asked for, and what stood in the prompt."""

    requested: dict[str, float]
    effective: dict[str, int]


class AnswerMessage(WireRecord):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(WireRecord):
    """The only choice."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(WireRecord):
    """Reply to a request without stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    steering: Steering


class ChunkDelta(WireRecord):
    """What this chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(WireRecord):
    """The only choice of a chunk."""

    index: Literal[0] = 0
    delta: ChunkDelta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class Chunk(WireRecord):
    """One server-sent event of a streamed reply."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    """In the last chunk only, and only with stream_options.include_usage."""
    steering: Steering | None = None
    """In the first chunk only."""


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=prompt_tokens + completion_tokens)


class Reply:
    """The replies to one request: the whole, or chunk by chunk, all with one id."""

    def __init__(self, model: str, steering: Steering):
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.steering = steering

    def whole(self, text: str, finish: Literal["stop", "length"], used: Usage) -> dict[str, Any]:
        choice = Choice(message=AnswerMessage(content=text), finish_reason=finish)
        return ChatCompletion(id=self.id, created=self.created, model=self.model, choices=[choice], usage=used, steering=self.steering).model_dump()

    def opening(self) -> dict[str, Any]:
        """The first chunk: the role, and what was asked."""
        return self._chunk([ChunkChoice(delta=ChunkDelta(role="assistant", content=""))], steering=self.steering)

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk([ChunkChoice(delta=ChunkDelta(content=text))])

    def closing(self, finish: Literal["stop", "length"]) -> dict[str, Any]:
        return self._chunk([ChunkChoice(delta=ChunkDelta(), finish_reason=finish)])

    def counts(self, used: Usage) -> dict[str, Any]:
        return self._chunk([], usage=used)

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> dict[str, Any]:
        chunk = Chunk(id=self.id, created=self.created, model=self.model, choices=choices, **more).model_dump()
        # As OpenAI does it: nothing instead of null, except where clients look for the null.
        for name in ("usage", "steering"):
            if chunk[name] is None:
                del chunk[name]
        for choice in chunk["choices"]:
            choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
        return chunk
