"""POST /v1/chat/completions: from the request's bytes to the reply, whole or as server-sent events. Knows no Ray and no policy."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve.admission import Admitted, Limits, admitted
from serve.answering import Answers, Generate, Score
from serve.models import Models
from serve.parser import parse
from serve.protocol import ProtocolError
from serve.teams import Allowance, Keys, Team
from serve.telemetry import RequestContext, Telemetry

COMPACT = (",", ":")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
LEFT = 499
"""As nginx calls it: the caller went away before the answer was whole."""


class Chat:
    """The route with all that it needs."""

    def __init__(
        self, models: Models, generate: Generate, score: Score | None, keys: Keys, limits: Limits, telemetry: Telemetry
    ):
        self._models, self._generate, self._score = models, generate, score
        self._keys, self._limits, self._telemetry = keys, limits, telemetry
        self._allowance = Allowance()

    async def __call__(self, request: Request) -> Response:
        visit = self._telemetry.visit()
        try:
            return await self._answered(request, visit)
        except ProtocolError as problem:
            visit.end(problem.status, problem.code or "invalid_request")
            raise
        except asyncio.CancelledError:
            visit.end(LEFT, "client_left")
            raise
        except ClientDisconnect:  # in the middle of the body
            visit.end(LEFT, "client_left")
            return Response(status_code=LEFT)
        except Exception:
            visit.end(500, "internal_error")
            raise

    async def _answered(self, request: Request, visit: RequestContext) -> Response:
        team = self._keys.team_of(request.headers.get("authorization"))
        visit.team = team.name
        asked = parse(await _body(request, self._limits.max_body_bytes))
        accepted = admitted(asked, team, self._models, self._limits, self._score is not None)
        visit.model, visit.profile = accepted.model.name, accepted.profile or ""
        visit.stream, visit.answers = asked.stream, len(accepted.jobs)
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(self._running(accepted, team, visit))
            await answers.start()
            if asked.stream:
                return _Stream(self._events(answers, accepted, visit), stack.pop_all(), visit)
            reply = await answers.whole()
            for choice in reply["choices"]:
                _book_gaps(visit, accepted, choice.get("measured"))
        visit.end(200)
        return JSONResponse(reply)

    @asynccontextmanager
    async def _running(self, accepted: Admitted, team: Team, visit: RequestContext) -> AsyncGenerator[Answers, None]:
        """Room for the answers and the answers themselves; both are given back at the end, whatever the end is."""
        with self._allowance.answers(team, len(accepted.jobs)):
            self._telemetry.admitted(visit, +1)
            answers = Answers(accepted, self._generate, self._score)
            try:
                yield answers
            finally:
                await answers.aclose()
                visit.prompt_tokens, visit.completion_tokens = answers.prompt_tokens, answers.completion_tokens
                self._allowance.spend(team, answers.prompt_tokens + answers.completion_tokens)
                self._telemetry.admitted(visit, -1)

    async def _events(self, answers: Answers, accepted: Admitted, visit: RequestContext) -> AsyncIterator[str]:
        """Server-sent events."""
        asked, reply = accepted.asked, accepted.reply
        for index in range(len(accepted.jobs)):
            yield _sse(reply.opening(index))
        try:
            async for index, delta in answers.deltas():
                if delta.text:
                    visit.heard_text()
                    yield _sse(reply.piece(index, delta.text))
                if delta.finish is not None:
                    yield _sse(reply.closing(index, delta.finish))
            if asked.score:
                measured = await answers.measured()
                _book_gaps(visit, accepted, measured)
                yield _sse(reply.measured(measured))
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield _sse(reply.counts(answers.used))
            visit.outcome = (200, None)
            yield "data: [DONE]\n\n"
        except ProtocolError as problem:
            # The status line is long gone: OpenAI's clients raise on an event with an error.
            visit.outcome = (problem.status, problem.code)
            yield _sse(problem.body())


class _Stream(StreamingResponse):
    """Closes what it streams from when it is over, also if the caller left before the first piece; then the visit is over too."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack, visit: RequestContext):
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._stack, self._context = stack, visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._stack:
                await super().__call__(scope, receive, send)
        finally:
            # Only a caller that goes away leaves a stream without an outcome.
            self._context.end(*(self._context.outcome or (LEFT, "client_left")))


def _book_gaps(visit: RequestContext, accepted: Admitted, measured: dict[str, float] | None) -> None:
    for name, value in (measured or {}).items():
        visit.gaps[name] = abs(value - accepted.jobs[0].attributes[name])


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than the limit, whatever Content-Length says."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise ProtocolError(
                f"the body is longer than {max_bytes} bytes: send a shorter conversation",
                code="body_too_large",
                status=413,
            )
    return body


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=COMPACT)}\n\n"
