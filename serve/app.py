"""The HTTP side of the endpoint: routes, error shapes, OpenAPI. It is given everything else.

Knows no Ray, no engine and no weights: `serve.ingress` puts it on a cluster.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from data.errors import UserError
from serve import openapi
from serve.admission import RequestLimits
from serve.answering import Generate, Score
from serve.auth import Keys, Team
from serve.bodies import Bodies
from serve.callers import CallerChecks
from serve.chat import Chat
from serve.models import ServedPolicies, ServedPolicy
from serve.parser import parse_swap
from serve.protocol import ProtocolError
from serve.request import PolicyInfo
from serve.telemetry import Telemetry

PAGE_HEADERS = {
    # The page is one file: nothing may be loaded from anywhere, and it may talk to nobody but us.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
READY_S = 1.0
"""How long /readyz gives the same answer: each one asks every replica, and anybody may ask for it."""
NO_ADMIN = "the /admin routes need a key of a team with admin: true"


@dataclass(frozen=True)
class Backend:
    """What stands behind the routes."""

    models: ServedPolicies
    generate: Generate
    score: Score | None
    """None = no predictor is served."""
    swap: Callable[[str, str], Awaitable[PolicyInfo]]
    """Answer a model's requests from another checkpoint; raises UserError if that cannot be."""
    replicas: Callable[[], Awaitable[Mapping[str, int]]]
    """How many replicas of each model answer now."""
    keys: Keys
    limits: RequestLimits
    telemetry: Telemetry
    page: str

    def team(self, request: Request) -> Team:
        """Of the caller; raises ProtocolError (401) if its key is nobody's."""
        return self.keys.team_of(request.headers.get("authorization"))

    def knows(self, request: Request) -> bool:
        """May the caller learn what is served?"""
        try:
            self.team(request)
        except ProtocolError:
            return False
        return True


def application(backend: Backend) -> FastAPI:
    """The endpoint as an ASGI application."""
    # Offline: /docs with our own assets. With scripts from a CDN it is blank on a closed network, and trusts the CDN.
    app = FastAPIOffline(
        title="SteerLM on Ray",
        summary="A steerable language model: OpenAI's chat completions with attributes.",
        redoc_url=None,
    )
    bodies = Bodies(backend.limits.body)
    chat = Chat(
        backend.models, backend.generate, backend.score, backend.keys, backend.limits, bodies, backend.telemetry
    )

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation at the requested attributes."""
        return await chat(request)

    _information(app, backend)
    _health(app, backend)
    _administration(app, backend, bodies)

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(backend.page, headers=PAGE_HEADERS)

    _errors(app)
    app.add_middleware(CallerChecks, keyless=not backend.keys.any, refusal=_error)
    openapi.describe(app)
    return app


def _information(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/models", **openapi.KEYED)
    async def models(request: Request) -> dict[str, object]:
        """The policies that are served."""
        backend.team(request)
        return {"object": "list", "data": [_model(policy) for policy in backend.models]}

    @app.get("/v1/models/{name}", **openapi.KEYED)
    async def model(request: Request, name: str) -> dict[str, object]:
        """One of the policies that are served."""
        backend.team(request)
        return _model(backend.models.named(name))

    @app.get("/v1/attributes", **openapi.KEYED)
    async def attributes(request: Request, model: str | None = None) -> dict[str, object]:
        """The attributes of a model (the first one if none is named), and the profiles that the caller may use."""
        team = backend.team(request)
        policy = backend.models.first if model is None else backend.models.named(model)
        return {
            "model": policy.name,
            "schema": policy.schema.name,
            "fingerprint": policy.schema.fingerprint,
            "max_new_tokens": backend.limits.max_new_tokens,
            "measures": backend.score is not None,
            "attributes": [a.model_dump() for a in policy.schema.attributes],
            "label_points": policy.calibration.points,
            "profiles": _profiles(policy, team),
        }


def _model(policy: ServedPolicy) -> dict[str, object]:
    return {"id": policy.name, "object": "model", "created": policy.info.created, "owned_by": "steerlm"}


def _profiles(policy: ServedPolicy, team: Team) -> list[dict[str, object]]:
    return [
        {
            "name": profile.name,
            "meaning": profile.meaning,
            "attributes": {a.name: profile.rule(a).model_dump() for a in policy.schema.attributes},
        }
        for profile in policy.profiles.values()
        if not team.profiles or profile.name in team.profiles
    ]


class Readiness:
    """How many replicas of each model answer, not asked for again within READY_S, however many callers want to know."""

    def __init__(self, replicas: Callable[[], Awaitable[Mapping[str, int]]], clock: Callable[[], float]):
        self._replicas, self._clock = replicas, clock
        self._asking, self._asked_at = asyncio.Lock(), -READY_S
        self._found: Mapping[str, int] = {}

    async def __call__(self) -> Mapping[str, int]:
        async with self._asking:
            if self._clock() - self._asked_at >= READY_S:
                self._found = await self._replicas()
                self._asked_at = self._clock()
            return self._found


def _health(app: FastAPI, backend: Backend) -> None:
    readiness = Readiness(backend.replicas, time.monotonic)

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, str]:
        """Is the endpoint's HTTP side alive? With a key: the first model too."""
        return {"status": "ok"} | ({"model": backend.models.first.name} if backend.knows(request) else {})

    @app.get("/readyz", responses={503: openapi.ERROR})
    async def readyz(request: Request) -> dict[str, object]:
        """Does at least one replica of every model answer? With a key: how many of each do."""
        replicas, knows = await readiness(), backend.knows(request)
        missing = [policy.name for policy in backend.models if not replicas.get(policy.name)]
        if missing:
            message = f"no replica of {', '.join(missing) if knows else 'a model'} answers"
            raise ProtocolError(message, code="not_ready", status=503, retry_after_s=5)
        return {"status": "ready"} | ({"replicas": dict(replicas)} if knows else {})


def _administration(app: FastAPI, backend: Backend, bodies: Bodies) -> None:
    @app.post("/admin/models/{name}", **openapi.SWAP)
    async def swap(request: Request, name: str) -> dict[str, object]:
        """Answer a model's requests from another checkpoint; those that run end on the old one."""
        if not backend.keys.any or not (team := backend.team(request)).admin:
            raise ProtocolError(NO_ADMIN, code="admin_only", status=403, kind="permission_error")
        backend.models.named(name)
        policy = parse_swap(await bodies.read(request, team.name))
        try:
            info = await backend.swap(name, policy)
        except UserError as problem:
            raise ProtocolError(str(problem), "policy", "policy_refused", 409) from None
        return {"model": info.name, "policy": info.policy, "created": info.created}


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ProtocolError)
    async def refused(_: Request, problem: ProtocolError) -> JSONResponse:
        headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
        if problem.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if problem.closes:
            headers["Connection"] = "close"
        return _error(problem, headers)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return _error(ProtocolError(message, code="not_found", status=error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        message = "the server failed on this request; see its log"
        return _error(ProtocolError(message, code="internal_error", status=500))


def _error(problem: ProtocolError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(problem.body().model_dump(), problem.status, headers)
