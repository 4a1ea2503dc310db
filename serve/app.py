"""The HTTP side of the endpoint: routes, server-sent events, error shapes. It is given everything: the policy's card, a way to generate, the page.

Knows no Ray, no engine and no weights: `serve.deploy` puts it on a cluster.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from data.attributes import AttributeProblem, AttributeSchema, Values
from serve.parser import attribute_problem, numbers, parse
from serve.profiles import Profile, find, resolve, shipped
from serve.reply import Reply, usage
from serve.wire import Card, ChatRequest, Delta, Event, Failed, Job, Started, Steering, WireProblem

Generate = Callable[[Job], AsyncGenerator[Event, None]]
"""Runs a job; closing the generator cancels it."""

PAGE_HEADERS = {
    # The page is one file: nothing may be loaded from anywhere, and it may talk to nobody but us.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
COMPACT = (",", ":")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_new_tokens: int
    max_body_bytes: int


def application(card: Card, generate: Generate, limits: Limits, page: str) -> FastAPI:
    """The endpoint as an ASGI application."""
    schema = AttributeSchema.model_validate_json(card.schema_json)
    profiles = shipped(schema)
    app = FastAPI(title="SteerLM on Ray", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = parse(await _body(request, limits.max_body_bytes))
        job, reply = admitted(asked, card, schema, profiles, limits)
        events = generate(job)
        first = await anext(events)
        if isinstance(first, Failed):
            await events.aclose()
            raise first.problem()
        assert isinstance(first, Started), f"a job began with {first}"
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(_streamed(events, reply, first, with_usage), media_type="text/event-stream", headers=STREAM_HEADERS)
        return JSONResponse(await _whole(events, reply, first))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": card.name, "object": "model", "created": card.created, "owned_by": "steerlm"}]}

    @app.get("/v1/attributes")
    async def attributes() -> dict[str, Any]:
        return {
            "model": card.name,
            "schema": schema.name,
            "fingerprint": schema.fingerprint,
            "max_new_tokens": limits.max_new_tokens,
            "attributes": [a.model_dump() for a in schema.attributes],
            "profiles": [_shown(profile, schema) for profile in profiles.values()],
        }

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "model": card.name}

    @app.get("/")
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.exception_handler(WireProblem)
    async def refused(_: Request, problem: WireProblem) -> JSONResponse:
        headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
        return JSONResponse(problem.body(), problem.status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> JSONResponse:
        problem = WireProblem(f"{request.method} {request.url.path[:100]}: {error.detail}", code="not_found", status=error.status_code)
        return JSONResponse(problem.body(), problem.status, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        problem = WireProblem("the server failed on this request; its log says why", code="internal_error", status=500, kind="server_error")
        return JSONResponse(problem.body(), problem.status)

    return app


def admitted(asked: ChatRequest, card: Card, schema: AttributeSchema, profiles: dict[str, Profile], limits: Limits) -> tuple[Job, Reply]:
    """The job that a request comes to, and the form of its replies; raises WireProblem naming the field to mend."""
    if asked.model not in (None, card.name):
        raise WireProblem(f"model {asked.model[:60]!r} is not served here; served: {card.name}", "model", "model_not_found", 404)
    field, max_tokens = asked.answer_limit
    if max_tokens is not None and max_tokens > limits.max_new_tokens:
        raise WireProblem(f"{field} is {max_tokens}; allowed: a whole number from 1 to {limits.max_new_tokens}", field)
    requested = numbers(asked.attributes)
    effective = _effective(schema, profiles, asked.profile, requested)
    job = Job(
        system=asked.system,
        messages=asked.turns,
        labels=tuple(_label(schema, field, given) for field, given in asked.answers),
        attributes=effective,
        max_tokens=max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        stop=tuple(asked.stop),
    )
    return job, Reply(card.name, Steering(requested=requested, effective=effective))


def _effective(schema: AttributeSchema, profiles: dict[str, Profile], profile: str | None, requested: dict[str, Any]) -> dict[str, int]:
    try:
        chosen = None if profile is None else find(profiles, profile[:60])
    except ValueError as problem:
        raise WireProblem(str(problem), "profile", "unknown_profile") from None
    try:
        return resolve(schema, chosen, requested)
    except AttributeProblem as problem:
        raise attribute_problem(problem) from None


def _label(schema: AttributeSchema, field: str, given: dict[str, Any] | None) -> Values | None:
    try:
        return None if given is None else schema.checked(numbers(given))
    except AttributeProblem as problem:
        raise attribute_problem(problem, field) from None


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than the limit, whatever Content-Length says."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise WireProblem(f"the body is longer than {max_bytes} bytes: send a shorter conversation", code="body_too_large", status=413)
    return body


async def _whole(events: AsyncGenerator[Event, None], reply: Reply, started: Started) -> dict[str, Any]:
    text = ""
    async with aclosing(events):
        async for delta in _deltas(events):
            text += delta.text
            if delta.finish is not None:
                return reply.whole(text, delta.finish, usage(started.prompt_tokens, delta.completion_tokens))
    raise AssertionError("a job's last event is a Delta with a finish, or Failed")


async def _streamed(events: AsyncGenerator[Event, None], reply: Reply, started: Started, with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events; a client that goes away closes this generator, and with it the job."""
    async with aclosing(events):
        yield _sse(reply.opening())
        try:
            async for delta in _deltas(events):
                if delta.text:
                    yield _sse(reply.piece(delta.text))
                if delta.finish is not None:
                    yield _sse(reply.closing(delta.finish))
                    if with_usage:
                        yield _sse(reply.counts(usage(started.prompt_tokens, delta.completion_tokens)))
                    yield "data: [DONE]\n\n"
        except WireProblem as problem:
            # The status line is long gone: OpenAI's clients raise on an event with an error.
            yield _sse(problem.body())


async def _deltas(events: AsyncIterator[Event]) -> AsyncIterator[Delta]:
    async for event in events:
        if isinstance(event, Failed):
            raise event.problem()
        if isinstance(event, Delta):
            yield event


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=COMPACT)}\n\n"


def _shown(profile: Profile, schema: AttributeSchema) -> dict[str, Any]:
    dials = {name: profile.dial(schema, name).model_dump() for name in schema.names}
    return {"name": profile.name, "meaning": profile.meaning, "attributes": dials}
