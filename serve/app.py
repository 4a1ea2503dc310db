"""The HTTP side of the endpoint: routes, error shapes, OpenAPI. It is given everything else.

Knows no Ray, no engine and no weights: `serve.ingress` puts it on a cluster.
"""

from collections.abc import Mapping
from dataclasses import asdict

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from data.errors import UserError
from serve import dials, feedback_routes, generating, guidance, health, openapi
from serve.auth import Team
from serve.backend import Backend
from serve.bodies import Bodies
from serve.callers import CallerChecks
from serve.models import ServedPolicy
from serve.parser import parse_swap
from serve.profiles import Profile
from serve.protocol import ProtocolError
from serve.rewrites import HeadAsGet, UnderPath

PAGE_HEADERS = {
    # The page is one file: nothing may be loaded from anywhere, and it may talk to nobody but us.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
DOCS_FILES = "static-offline-docs"
CODES = {404: "not_found", 405: "method_not_allowed"}
"""HTTP status -> code, of what no route of ours takes."""


def application(backend: Backend) -> FastAPI:
    """The endpoint as an ASGI application."""
    # Offline: /docs with our own assets. With scripts from a CDN it is blank on a closed network, and trusts the CDN.
    app = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        static_url=f"/{DOCS_FILES}",
        title="SteerLM on Ray",
        version=health.VERSION,
        summary="A steerable language model: OpenAI's chat completions with attributes.",
        root_path=backend.root_path,
    )
    bodies = Bodies(backend.limits.body)
    generating.add_routes(app, backend, bodies)
    feedback_routes.add_routes(app, backend, bodies)
    _information(app, backend)
    health.add_routes(app, backend)
    _administration(app, backend, bodies)
    _pages(app, backend.page)
    _errors(app)
    _in_front(app, backend)
    openapi.describe(app)
    return app


def _in_front(app: FastAPI, backend: Backend) -> None:
    """What sees a request before any route does; the last one added is the first."""
    app.add_middleware(CallerChecks, keyless=not backend.keys.any, refusal=_error, origins=backend.cors_origins)
    app.add_middleware(HeadAsGet)
    if backend.root_path:
        app.add_middleware(UnderPath, root_path=backend.root_path)
    if backend.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=backend.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("Retry-After",),
        )


def _pages(app: FastAPI, page: str) -> None:
    """For people. Their addresses are relative, so that they work under any path of a proxy."""

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url=f"{DOCS_FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_FILES}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_FILES}/favicon.png",
        )


def _information(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/models", **openapi.KEYED)
    async def models(request: Request) -> dict[str, object]:
        """The policies that are served, each also with every profile that the caller may use."""
        team = backend.team(request)
        rows = [row for policy in backend.models if team.may_use(policy.name) for row in _rows(policy, team)]
        return {"object": "list", "data": rows}

    @app.get("/v1/models/{name:path}", **openapi.KEYED)
    async def model(request: Request, name: str) -> dict[str, object]:
        """One of them."""
        team = backend.team(request)
        found = backend.models.addressed(name, team)
        team.profile(found.profile)
        return _row(found.policy, name)

    @app.get("/v1/attributes", **openapi.KEYED)
    async def attributes(request: Request, model: str | None = None) -> dict[str, object]:
        """The attributes of a model (the first one if none is named), and the profiles that the caller may use."""
        team = backend.team(request)
        policy = backend.models.of(team)[0] if model is None else backend.models.addressed(model, team).policy
        return {
            "model": policy.name,
            "schema": policy.schema.name,
            "fingerprint": policy.schema.fingerprint,
            "context": policy.info.context,
            "max_new_tokens": backend.limits.longest(policy),
            "sampling": asdict(backend.limits.sampling),
            "measures": backend.score is not None,
            "feedback": _feedback(backend, team),
            "attributes": [a.model_dump() for a in policy.schema.attributes],
            "dials": dials.described(policy.schema),
            "guidance": guidance.described(policy),
            "label_points": policy.calibration.points,
            "raters": policy.text_rater.raters(policy.schema.names),
            "profiles": [_profile(policy, profile) for profile in _profiles(policy, team)],
        }


def _feedback(backend: Backend, team: Team) -> dict[str, int] | None:
    """How long texts and ratings are kept; None = it is off, or this team gives none."""
    if backend.feedback is None or not team.feedback:
        return None
    return backend.feedback.settings.model_dump(include={"answers_minutes", "retention_days"})


def _profiles(policy: ServedPolicy, team: Team) -> list[Profile]:
    """Those that a team may use."""
    return [p for p in policy.profiles.values() if not team.profiles or p.name in team.profiles]


def _profile(policy: ServedPolicy, profile: Profile) -> dict[str, object]:
    return {
        "name": profile.name,
        "meaning": profile.meaning,
        "attributes": {a.name: profile.rule(a).model_dump() for a in policy.schema.attributes},
        "dials": dials.described(policy.schema, profile),
        "max_guidance": profile.max_guidance,
    }


def _rows(policy: ServedPolicy, team: Team) -> list[dict[str, object]]:
    """A model as it is, and under each profile: what clients show to choose from."""
    names = [policy.name, *(policy.named_with(profile.name) for profile in _profiles(policy, team))]
    return [_row(policy, name) for name in names]


def _row(policy: ServedPolicy, name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": policy.info.created,
        "owned_by": "steerlm",
        "root": policy.name,
        "parent": (policy.info.base or None) if name == policy.name else policy.name,
        "max_model_len": policy.info.context,
    }


def _administration(app: FastAPI, backend: Backend, bodies: Bodies) -> None:
    @app.post("/admin/models/{name}", **openapi.SWAP)
    async def swap(request: Request, name: str) -> dict[str, object]:
        """Answer a model's requests from another checkpoint, or add or change an adapter; those that run end on the
        old one."""
        team = backend.operator(request, "the /admin routes")
        sent = parse_swap(await bodies.read(request, team.name))
        if sent.adapter is None:
            backend.models.named(name)
        try:
            change = backend.swap(name, str(sent.policy)) if sent.adapter is None else backend.adapt(name, sent.adapter)
            info = await change
        except UserError as problem:
            field = "policy" if sent.adapter is None else "adapter"
            raise ProtocolError(str(problem), field, f"{field}_refused", 409) from None
        return {"model": info.name, "policy": info.policy, "created": info.created}

    @app.delete("/admin/models/{name}", **openapi.REMOVAL)
    async def remove(request: Request, name: str) -> dict[str, object]:
        """Stop serving an adapter; answers that run are finished."""
        backend.operator(request, "the /admin routes")
        backend.models.named(name)
        try:
            await backend.remove(name)
        except UserError as problem:
            raise ProtocolError(str(problem), "model", "adapter_refused", 409) from None
        return {"model": name, "deleted": True}


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
        code = CODES.get(error.status_code, "invalid_request")
        return _error(ProtocolError(message, code=code, status=error.status_code), error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        message = "the server failed on this request; see its log"
        return _error(ProtocolError(message, code="internal_error", status=500))


def _error(problem: ProtocolError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(problem.body().model_dump(), problem.status, headers)
