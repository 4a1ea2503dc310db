"""Routes for machines that watch the endpoint: is it alive, does it answer, which version, what do its metrics say."""

import asyncio
import time
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from serve import openapi
from serve.backend import Backend
from serve.protocol import ProtocolError

READY_S = 1.0
"""How long /readyz gives the same answer: each one asks every replica, and anybody may ask for it."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
VERSION = str(tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text())["project"]["version"])


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


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Let `app` answer them."""
    readiness = Readiness(backend.replicas, time.monotonic)

    @app.get("/healthz")
    @app.get("/health", include_in_schema=False)
    @app.get("/ping", include_in_schema=False)
    async def healthz(request: Request) -> dict[str, str]:
        """Is the endpoint's HTTP side alive? With a key: the first model too. Also as /health and /ping."""
        return {"status": "ok"} | ({"model": backend.models.first.name} if backend.knows(request) else {})

    @app.get("/readyz", responses={503: openapi.ERROR})
    async def readyz(request: Request) -> dict[str, object]:
        """Does at least one replica of every model answer? With a key: how many of each do."""
        replicas, knows = await readiness(), backend.knows(request)
        missing = [p.name for p in backend.models if not replicas.get(backend.models.replicas_of(p.name))]
        if missing:
            message = f"no replica of {', '.join(missing) if knows else 'a model'} answers"
            raise ProtocolError(message, code="not_ready", status=503, retry_after_s=5)
        return {"status": "ready"} | ({"replicas": dict(replicas)} if knows else {})

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The version of this software."""
        return {"version": VERSION}

    @app.get("/metrics", **openapi.METRICS)
    async def metrics(request: Request) -> PlainTextResponse:
        """The endpoint's metrics for Prometheus. Where keys are set, for operators: they name every team."""
        if backend.keys.any:
            backend.operator(request, "/metrics and the /admin routes")
        return PlainTextResponse(await backend.metrics(), media_type=METRICS_TYPE)
