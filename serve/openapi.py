"""Our routes in /openapi.json: bodies are parsed by `serve.parser`, so FastAPI cannot know them by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.chat_request import ChatRequest
from serve.completion_reply import Completion
from serve.completion_request import CompletionRequest
from serve.protocol import ErrorBody, SwapRequest
from serve.reply import ChatCompletion, Chunk
from serve.requested import FORM, HEADER
from serve.responses_reply import ResponseEvent, ResponseObject
from serve.tokenize_request import TokenizeRequest

_REFERENCE = "#/components/schemas/{model}"


def _content(record: type) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=record.__name__)}}


def _body(record: type) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": _content(record)}}}


ERROR: dict[str, Any] = {
    "description": "Why not, in OpenAI's error shape.",
    "content": {"application/json": _content(ErrorBody)},
}
_BEARER: dict[str, Any] = {"security": [{"bearer": []}]}

KEYED: dict[str, Any] = {"responses": dict.fromkeys((401, 404, 422), ERROR), "openapi_extra": _BEARER}
METRICS: dict[str, Any] = {
    "response_model": None,
    "responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **dict.fromkeys((401, 403), ERROR)},
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
CHAT: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "The answer; with stream, server-sent events: one chunk each, then [DONE].",
            "content": {"application/json": _content(ChatCompletion), "text/event-stream": _content(Chunk)},
        },
        **_REFUSALS,
    },
    "openapi_extra": _BEARER | _WANTED | _body(ChatRequest),
}
COMPLETIONS: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "The answer; with stream, server-sent events: one such object each, then [DONE].",
            "content": {"application/json": _content(Completion), "text/event-stream": _content(Completion)},
        },
        **_REFUSALS,
    },
    "openapi_extra": _BEARER | _body(CompletionRequest),
}
RESPONSES: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "The answer; with stream, server-sent events of the types that OpenAI's SDKs know.",
            "content": {"application/json": _content(ResponseObject), "text/event-stream": _content(ResponseEvent)},
        },
        **_REFUSALS,
    },
    "openapi_extra": _BEARER
    | _WANTED
    | {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["input"],
                        "properties": {
                            "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
                            "instructions": {"type": "string"},
                            "max_output_tokens": {"type": "integer", "minimum": 1},
                            "text": {"type": "object"},
                            "reasoning": {"type": "object"},
                        },
                    }
                }
            },
        }
    },
}
TOKENIZE: dict[str, Any] = {
    "responses": _REFUSALS,
    "openapi_extra": _BEARER
    | _WANTED
    | {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"anyOf": [_content(record)["schema"] for record in (TokenizeRequest, ChatRequest)]}
                }
            },
        }
    },
}
SWAP: dict[str, Any] = {
    "responses": dict.fromkeys((400, 401, 403, 404, 409, 415, 422), ERROR),
    "openapi_extra": _BEARER | _body(SwapRequest),
}
RECORDS = (
    *(ChatRequest, ChatCompletion, Chunk, CompletionRequest, Completion, ResponseObject, ResponseEvent),
    *(ErrorBody, SwapRequest, TokenizeRequest),
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
