"""What /openapi.json says of our routes: bodies are parsed by `serve.parser`, so FastAPI cannot know them by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.protocol import ChatCompletion, ChatRequest, Chunk, ErrorBody, SwapRequest

_REFERENCE = "#/components/schemas/{model}"


def _ref(record: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=record.__name__)}


def _json(record: type, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(record)}}}


ERROR = _json(ErrorBody, "Why not, in OpenAI's error shape.")
_BEARER: dict[str, Any] = {"security": [{"bearer": []}]}

KEYED: dict[str, Any] = {"responses": dict.fromkeys((401, 404, 422), ERROR), "openapi_extra": _BEARER}
CHAT: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {
            "description": "The answer; with stream, server-sent events: one chunk each, then [DONE].",
            "content": {
                "application/json": {"schema": _ref(ChatCompletion)},
                "text/event-stream": {"schema": _ref(Chunk)},
            },
        },
        **dict.fromkeys((400, 401, 403, 404, 413, 429, 503), ERROR),
    },
    "openapi_extra": _BEARER
    | {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(ChatRequest)}}}},
}
SWAP: dict[str, Any] = {
    "responses": dict.fromkeys((400, 401, 403, 404, 409, 422), ERROR),
    "openapi_extra": _BEARER
    | {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(SwapRequest)}}}},
}


def describe(app: FastAPI) -> None:
    """Let `app` answer /openapi.json with its routes and our records."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = found.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for record in (ChatRequest, ChatCompletion, Chunk, ErrorBody, SwapRequest):
                schema = record.model_json_schema(ref_template=_REFERENCE)
                schemas |= schema.pop("$defs", {}) | {record.__name__: schema}
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
