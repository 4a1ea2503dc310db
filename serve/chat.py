"""POST /v1/chat/completions: from the request's bytes to the reply, whole or as server-sent events.

Knows no Ray and no policy.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve.admission import AdmittedRequest, RequestLimits, admitted
from serve.answering import Generate, RunningAnswers, Score
from serve.auth import Keys, Team
from serve.bodies import Bodies
from serve.models import ServedPolicies
from serve.parser import parse
from serve.protocol import ProtocolError, ProtocolRecord
from serve.rate_limits import RateLimiter
from serve.telemetry import RequestContext, Telemetry

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
CLIENT_LEFT = (499, "client_left")
"""Status as nginx has it: the caller went away before the answer was whole."""


@dataclass
class Chat:
    """The route and what it needs."""

    models: ServedPolicies
    generate: Generate
    score: Score | None
    keys: Keys
    limits: RequestLimits
    bodies: Bodies
    telemetry: Telemetry
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)

    async def __call__(self, request: Request) -> Response:
        context = self.telemetry.arrived()
        try:
            return await self._answered(request, context)
        except ProtocolError as problem:
            context.end(problem.status, problem.code or "invalid_request")
            raise
        except asyncio.CancelledError:
            context.end(*CLIENT_LEFT)
            raise
        except ClientDisconnect:  # in the middle of the body
            context.end(*CLIENT_LEFT)
            return Response(status_code=CLIENT_LEFT[0])
        except Exception:
            context.end(500, "internal_error")
            raise

    async def _answered(self, request: Request, context: RequestContext) -> Response:
        team = self.keys.team_of(request.headers.get("authorization"))
        context.team = team.name
        chat = parse(await self.bodies.read(request, team.name), self.limits.max_messages)
        accepted = admitted(chat, team, self.models, self.limits, self.score is not None)
        context.model, context.profile = accepted.model.name, accepted.profile or ""
        context.stream, context.answers = accepted.stream, len(accepted.generations)
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(self._running(accepted, team, context))
            await answers.start()
            if accepted.stream:
                return _Stream(self._events(answers, accepted, context), stack.pop_all(), context)
            reply = await answers.whole()
            for choice in reply.choices:
                _record_gaps(context, accepted, choice.measured)
        context.end(200)
        return Response(reply.model_dump_json(), media_type="application/json")

    @asynccontextmanager
    async def _running(
        self, accepted: AdmittedRequest, team: Team, context: RequestContext
    ) -> AsyncGenerator[RunningAnswers, None]:
        """The answers, inside the team's limits; both are released at the end, however it ends."""
        with self.rate_limiter.answers(team, len(accepted.generations), accepted.cost) as reservation:
            self.telemetry.admitted(context, +1)
            answers = RunningAnswers(accepted, self.generate, self.score, reservation)
            try:
                yield answers
            finally:
                await answers.aclose()
                usage = answers.usage
                context.prompt_tokens, context.completion_tokens = usage.prompt_tokens, usage.completion_tokens
                self.telemetry.admitted(context, -1)

    async def _events(
        self, answers: RunningAnswers, accepted: AdmittedRequest, context: RequestContext
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        reply = accepted.reply
        for index in range(len(accepted.generations)):
            yield _sse(reply.opening(index))
        try:
            async for index, delta in answers.deltas():
                if delta.text:
                    context.record_first_text()
                    yield _sse(reply.piece(index, delta.text))
                if delta.finish is not None:
                    yield _sse(reply.closing(index, delta.finish))
            if accepted.score:
                measured = await answers.measured()
                _record_gaps(context, accepted, measured)
                yield _sse(reply.measured(measured))
            if accepted.include_usage:
                yield _sse(reply.counts(answers.usage))
            context.outcome = (200, None)
            yield "data: [DONE]\n\n"
        except ProtocolError as problem:
            # The status line is long gone: OpenAI's clients raise on an event with an error.
            context.outcome = (problem.status, problem.code)
            yield _sse(problem.body())


class _Stream(StreamingResponse):
    """Closes its source and ends the request's context at the end, also if the caller leaves before the first piece."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack, context: RequestContext):
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._stack, self._context = stack, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._stack:
                await super().__call__(scope, receive, send)
        finally:
            # Only a caller that goes away leaves a stream without an outcome.
            self._context.end(*(self._context.outcome or CLIENT_LEFT))


def _record_gaps(context: RequestContext, accepted: AdmittedRequest, measured: dict[str, float] | None) -> None:
    for name, value in (measured or {}).items():
        context.gaps[name] = abs(value - accepted.effective[name])


def _sse(record: ProtocolRecord) -> str:
    return f"data: {record.model_dump_json()}\n\n"
