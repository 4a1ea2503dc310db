"""A route that generates: from the request's bytes to the reply, whole or as server-sent events.

Knows no Ray, no policy and none of the request's fields: it is given a function that reads and admits it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from serve.admission import AdmittedRequest
from serve.answering import Generate, RunningAnswers, Score, gaps
from serve.auth import Keys, Team
from serve.bodies import Bodies
from serve.event_stream import CLIENT_LEFT, DONE, EventStream, events_of
from serve.feedback import Feedback
from serve.live import Live, LiveAnswer
from serve.protocol import ProtocolError, ProtocolRecord
from serve.rate_limits import RateLimiter
from serve.reply import Reply
from serve.request import Delta
from serve.requested import HEADER
from serve.telemetry import RequestContext, Telemetry

Admit = Callable[[bytes, Team, str], tuple[AdmittedRequest, frozenset[str]]]
"""(body, team, attributes from a header) -> what to generate, and what the caller sent that is not used. Raises
ProtocolError."""
OPENING_S = 0.5
"""A request that is refused within it gets its own status; then a stream begins, with or without a place to write."""


async def accounted(context: RequestContext, answering: Awaitable[Response]) -> Response:
    """What `answering` gives; if it gives nothing, `context` ends with the reason."""
    try:
        return await answering
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


@dataclass
class GenerationRoute:
    """The route and what it needs."""

    admit: Admit
    generate: Generate
    score: Score | None
    keys: Keys
    bodies: Bodies
    telemetry: Telemetry
    rate_limiter: RateLimiter
    feedback: Feedback | None
    live: Live | None

    async def __call__(self, request: Request) -> Response:
        context = self.telemetry.arrived(request.scope["route"].path)
        return await accounted(context, self._answered(request, context))

    async def _answered(self, request: Request, context: RequestContext) -> Response:
        authorization = request.headers.get("authorization")
        team = self.keys.team_of(authorization)
        context.team = team.name
        body = await self.bodies.read(request, team.name)
        accepted, unused = self.admit(body, team, ",".join(request.headers.getlist(HEADER)))
        self.telemetry.unused(team.name, authorization, unused | accepted.unused)
        context.model, context.profile = accepted.model.name, accepted.profile or ""
        context.stream, context.answers = accepted.stream, len(accepted.generations)
        async with AsyncExitStack() as stack:
            answers = await stack.enter_async_context(self._running(accepted, team, context))
            if accepted.stream:
                await answers.start(OPENING_S)
                return EventStream(self._events(answers, accepted, team, context), stack.pop_all(), context)
            await answers.start()
            finished, choice = await answers.finished()
            for answer in finished:
                _record_gaps(context, accepted, answer.measured)
            first, num_prompt = finished[0], answers.prompt_tokens
            self._record(team, accepted, LiveAnswer(first.text, num_prompt, first.completion_tokens, first.measured))
            reply = accepted.reply.whole(finished, answers.usage, choice)
        await self._keep(team, accepted, [answer.text for answer in finished])
        context.end(200)
        return Response(reply.model_dump_json(), media_type="application/json")

    @asynccontextmanager
    async def _running(
        self, accepted: AdmittedRequest, team: Team, context: RequestContext
    ) -> AsyncGenerator[RunningAnswers, None]:
        """The answers, inside the team's limits; both are released at the end, however it ends."""
        async with self.rate_limiter.answers(team, len(accepted.generations), accepted.cost) as reservation:
            self.telemetry.admitted(context, +1)
            answers = RunningAnswers(accepted, self.generate, self.score, reservation)
            try:
                yield answers
            finally:
                await answers.aclose()
                usage = answers.usage
                context.prompt_tokens, context.completion_tokens = usage.prompt_tokens, usage.completion_tokens
                self.telemetry.admitted(context, -1)

    async def _keep(self, team: Team, accepted: AdmittedRequest, texts: Sequence[str]) -> None:
        """What can be rated later must be safe before the caller has its end."""
        if self.feedback is not None:
            await self.feedback.keep(team, accepted, texts)

    def _record(self, team: Team, accepted: AdmittedRequest, answer: LiveAnswer) -> None:
        if self.live is not None:
            self.live.take(team, accepted, answer)

    async def _events(
        self, answers: RunningAnswers, accepted: AdmittedRequest, team: Team, context: RequestContext
    ) -> AsyncIterator[str]:
        """Server-sent events."""
        reply = accepted.reply
        for index in range(len(accepted.generations)):
            yield events_of(reply.opening(index))
        try:
            await answers.start()
            held = None
            async for index, delta in answers.deltas():
                if delta.shows:
                    context.record_first_text()
                    yield events_of(_shown(reply, index, delta))
                if delta.finish is not None and answers.are_whole:
                    await self._keep(team, accepted, tuple(answers.texts))
                    if not accepted.score:
                        self._record(team, accepted, _streamed(answers))
                if delta.finish is not None and accepted.score and index == 0:
                    held = delta.finish
                elif delta.finish is not None:
                    yield events_of(reply.closing(index, delta.finish))
            if held is not None:  # what was measured goes with the answer's end: after that, some clients read no more
                measured = await answers.measured()
                _record_gaps(context, accepted, measured)
                self._record(team, accepted, _streamed(answers, measured))
                yield events_of(reply.closing(0, held, measured))
            if accepted.include_usage:
                yield events_of(reply.counts(answers.usage))
            context.outcome = (200, None)
            if reply.has_done:
                yield DONE
        except ProtocolError as problem:
            # The status line is long gone: OpenAI's clients raise on an event with an error.
            context.outcome = (problem.status, problem.code)
            yield events_of([problem.body()])


def _shown(reply: Reply, index: int, delta: Delta) -> Iterator[ProtocolRecord]:
    if delta.echo is not None:
        yield from reply.pieces(index, delta.echo.text, delta.echo.tokens)
    if delta.text or delta.tokens:
        yield from reply.pieces(index, delta.text, delta.tokens)


def _streamed(answers: RunningAnswers, measured: dict[str, float] | None = None) -> LiveAnswer:
    return LiveAnswer(answers.texts[0], answers.prompt_tokens, answers.num_tokens[0], measured)


def _record_gaps(context: RequestContext, accepted: AdmittedRequest, measured: dict[str, float] | None) -> None:
    context.gaps.update(gaps(accepted.effective, measured or {}))
