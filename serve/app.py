"""The HTTP side of the endpoint: routes, error shapes, OpenAPI. It is given everything else.

Knows no Ray, no engine and no weights: `serve.ingress` puts it on a cluster.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from data.attributes import AttributeSchema
from data.errors import UserError
from serve import openapi
from serve.admission import Limits
from serve.answering import Generate, Score
from serve.chat import Chat
from serve.models import Models
from serve.parser import parse_swap
from serve.profiles import Profile
from serve.protocol import ProtocolError
from serve.request import Card
from serve.teams import Keys
from serve.telemetry import Telemetry

PAGE_HEADERS = {
    # The page is one file: nothing may be loaded from anywhere, and it may talk to nobody but us.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
NO_ADMIN = "the /admin routes need a key of a team with admin: true"


@dataclass(frozen=True)
class Backend:
    """What stands behind the routes."""

    models: Models
    generate: Generate
    score: Score | None
    """None = no predictor is served."""
    swap: Callable[[str, str], Awaitable[Card]]
    """Answer a model's requests from another checkpoint; raises UserError if that cannot be."""
    replicas: Callable[[], Awaitable[Mapping[str, int]]]
    """How many replicas of each model answer now."""
    keys: Keys
    limits: Limits
    telemetry: Telemetry
    page: str


def application(backend: Backend) -> FastAPI:
    """The endpoint as an ASGI application."""
    # Offline: /docs with assets of our own; a page that loads scripts from a CDN is blank on a closed network, and trusts a stranger on an open one.
    app = FastAPIOffline(
        title="SteerLM on Ray",
        summary="A steerable language model: OpenAI's chat completions with attributes.",
        redoc_url=None,
    )
    chat = Chat(backend.models, backend.generate, backend.score, backend.keys, backend.limits, backend.telemetry)

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation at the attributes that are asked for."""
        return await chat(request)

    _information(app, backend)
    _administration(app, backend)
    _pages(app, backend.page)
    _errors(app)
    openapi.describe(app)
    return app


def _information(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/models", **openapi.KEYED)
    async def models(request: Request) -> dict[str, Any]:
        """The policies that are served."""
        backend.keys.team_of(request.headers.get("authorization"))
        cards = [model.card for model in backend.models]
        return {
            "object": "list",
            "data": [{"id": c.name, "object": "model", "created": c.created, "owned_by": "steerlm"} for c in cards],
        }

    @app.get("/v1/attributes", **openapi.KEYED)
    async def attributes(request: Request, model: str | None = None) -> dict[str, Any]:
        """The dials of a model (the first one if none is named), and the profiles that the caller may use."""
        team = backend.keys.team_of(request.headers.get("authorization"))
        asked = backend.models.first if model is None else backend.models.named(model)
        return {
            "model": asked.name,
            "schema": asked.schema.name,
            "fingerprint": asked.schema.fingerprint,
            "max_new_tokens": backend.limits.max_new_tokens,
            "measures": backend.score is not None,
            "attributes": [a.model_dump() for a in asked.schema.attributes],
            "profiles": [
                _shown(profile, asked.schema)
                for name, profile in asked.profiles.items()
                if not team.profiles or name in team.profiles
            ],
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Is the endpoint's HTTP side alive?"""
        return {"status": "ok", "model": backend.models.first.name}

    @app.get("/readyz", responses={503: openapi.ERROR})
    async def readyz() -> dict[str, Any]:
        """Does at least one replica of every model answer?"""
        replicas = await backend.replicas()
        missing = [model.name for model in backend.models if not replicas.get(model.name)]
        if missing:
            raise ProtocolError(
                f"no replica of {', '.join(missing)} answers",
                code="not_ready",
                status=503,
                kind="server_error",
                retry_after_s=5,
            )
        return {"status": "ready", "replicas": dict(replicas)}


def _administration(app: FastAPI, backend: Backend) -> None:
    @app.post("/admin/models/{name}", **openapi.SWAP)
    async def swap(request: Request, name: str) -> dict[str, Any]:
        """Answer a model's requests from another checkpoint; those that run end on the old one."""
        if not backend.keys.any or not backend.keys.team_of(request.headers.get("authorization")).admin:
            raise ProtocolError(NO_ADMIN, code="admin_only", status=403, kind="permission_error")
        backend.models.named(name)
        policy = parse_swap(await request.body())
        try:
            card = await backend.swap(name, policy)
        except UserError as problem:
            raise ProtocolError(str(problem), "policy", "policy_refused", 409) from None
        return {"model": card.name, "policy": card.policy, "created": card.created}


def _pages(app: FastAPI, page: str) -> None:
    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ProtocolError)
    async def refused(_: Request, problem: ProtocolError) -> JSONResponse:
        headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
        if problem.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(problem.body(), problem.status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        problem = ProtocolError(
            f"{request.method} {request.url.path[:100]}: {error.detail}", code="not_found", status=error.status_code
        )
        return JSONResponse(problem.body(), problem.status, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        problem = ProtocolError(
            "the server failed on this request; its log says why",
            code="internal_error",
            status=500,
            kind="server_error",
        )
        return JSONResponse(problem.body(), problem.status)


def _shown(profile: Profile, schema: AttributeSchema) -> dict[str, Any]:
    dials = {name: profile.dial(schema, name).model_dump() for name in schema.names}
    return {"name": profile.name, "meaning": profile.meaning, "attributes": dials}
