"""Our routes in /openapi.json: bodies are parsed by `serve.parser`, so FastAPI cannot know them by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from data.bounds import MAX_GUIDANCE
from serve.chat_request import ChatRequest
from serve.completion_reply import Completion
from serve.completion_request import CompletionRequest
from serve.feedback_request import FeedbackRequest
from serve.protocol import ErrorBody, SwapRequest
from serve.reply import ChatCompletion, Chunk
from serve.requested import FORM, HEADER
from serve.responses_reply import ResponseEvent, ResponseObject
from serve.tokenize_request import TokenizeRequest

_REFERENCE = "#/components/schemas/{model}"


def _content(record: type) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=record.__name__)}}


def _body(record: type) -> dict[str, Any]:
    return _json_body(_content(record)["schema"])


def _json_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _generating(body: dict[str, Any], whole: type, piece: type, events: str) -> dict[str, Any]:
    """A route that generates; `events` says what a stream sends, each a `piece`."""
    content = {"application/json": _content(whole), "text/event-stream": _content(piece)}
    return {
        "response_model": None,
        "responses": {
            200: {"description": f"The answer; with stream, server-sent events{events}.", "content": content},
            **_REFUSALS,
        },
        "openapi_extra": _BEARER | body,
    }


ERROR: dict[str, Any] = {
    "description": "Why not, in OpenAI's error shape.",
    "content": {"application/json": _content(ErrorBody)},
}
_BEARER: dict[str, Any] = {"security": [{"bearer": []}]}

KEYED: dict[str, Any] = {"responses": dict.fromkeys((401, 404, 422), ERROR), "openapi_extra": _BEARER}
METRICS: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **dict.fromkeys((401, 403, 503), ERROR),
    },
    "openapi_extra": _BEARER,
}
_WANTED: dict[str, Any] = {
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "description": f"Attributes, for clients that can send no others: {FORM}.",
            "schema": {"type": "string"},
        }
    ]
}
_REFUSALS: dict[int, Any] = dict.fromkeys((400, 401, 403, 404, 408, 413, 415, 429, 503), ERROR)
_INPUT: dict[str, Any] = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "instructions": {"type": "string"},
        "max_output_tokens": {"type": "integer", "minimum": 1},
        "text": {"type": "object"},
        "reasoning": {"type": "object"},
        "attributes": {"type": "object", "additionalProperties": {"type": "number"}},
        "guidance": {"type": "number", "minimum": 0, "maximum": MAX_GUIDANCE},
    },
}
CHAT = _generating(_WANTED | _body(ChatRequest), ChatCompletion, Chunk, ": one chunk each, then [DONE]")
COMPLETIONS = _generating(_body(CompletionRequest), Completion, Completion, ": one such object each, then [DONE]")
RESPONSES = _generating(
    _WANTED | _json_body(_INPUT), ResponseObject, ResponseEvent, " of the types that OpenAI's SDKs know"
)
TOKENIZE: dict[str, Any] = {
    "responses": _REFUSALS,
    "openapi_extra": _BEARER
    | _WANTED
    | _json_body({"anyOf": [_content(record)["schema"] for record in (TokenizeRequest, ChatRequest)]}),
}
FEEDBACK: dict[str, Any] = {
    "responses": _REFUSALS,
    "openapi_extra": _BEARER | _body(FeedbackRequest),
}
FEEDBACK_DELETED: dict[str, Any] = {
    "responses": dict.fromkeys((401, 403, 404, 422, 503), ERROR),
    "openapi_extra": _BEARER,
}
SWAP: dict[str, Any] = {
    "responses": dict.fromkeys((400, 401, 403, 404, 409, 415, 422), ERROR),
    "openapi_extra": _BEARER | _body(SwapRequest),
}
REMOVAL: dict[str, Any] = {
    "responses": dict.fromkeys((401, 403, 404, 409, 422), ERROR),
    "openapi_extra": _BEARER,
}
RECORDS = (
    *(ChatRequest, ChatCompletion, Chunk, CompletionRequest, Completion, ResponseObject, ResponseEvent),
    *(ErrorBody, FeedbackRequest, SwapRequest, TokenizeRequest),
)


def describe(app: FastAPI) -> None:
    """Let `app` answer /openapi.json with its routes and our records."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = found.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for record in RECORDS:
                schema = record.model_json_schema(ref_template=_REFERENCE)
                schemas |= schema.pop("$defs", {}) | {record.__name__: schema}
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
