"""The routes of feedback: people's ratings of answers, for a next run. Knows no storage and no Ray."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve import openapi
from serve.auth import Team
from serve.backend import Backend
from serve.bodies import Bodies
from serve.feedback import Feedback
from serve.feedback_request import FeedbackDeleted, FeedbackReply
from serve.generation_route import accounted
from serve.parser import parse_feedback
from serve.protocol import ProtocolError, ProtocolRecord

ROUTE = "/v1/feedback"
Step = Callable[[Request, Team, Feedback], Awaitable[ProtocolRecord]]


def add_routes(app: FastAPI, backend: Backend, bodies: Bodies) -> None:
    """They are there where feedback is off, too, and say how to turn it on."""

    async def answered(request: Request, step: Step) -> Response:
        context = backend.telemetry.arrived(request.scope["route"].path)
        context.answers = 0

        async def done() -> Response:
            team = backend.team(request)
            context.team = team.name
            reply = await step(request, team, _allowed(backend, team))
            context.end(200)
            return Response(reply.model_dump_json(), media_type="application/json")

        return await accounted(context, done())

    async def rated(request: Request, team: Team, feedback: Feedback) -> FeedbackReply:
        rater = backend.keys.rater_of(request.headers.get("authorization"))
        sent = parse_feedback(await bodies.read(request, team.name))
        return FeedbackReply(id=sent.id, index=sent.index, attributes=await feedback.rate(team, rater, sent))

    async def deleted(request: Request, team: Team, feedback: Feedback) -> FeedbackDeleted:
        answers, ratings = await feedback.delete(team, request.path_params["id"])
        return FeedbackDeleted(answers=answers, ratings=ratings)

    async def all_deleted(_: Request, team: Team, feedback: Feedback) -> FeedbackDeleted:
        answers, ratings = await feedback.delete_all(team)
        return FeedbackDeleted(answers=answers, ratings=ratings)

    @app.post(ROUTE, response_model=FeedbackReply, **openapi.FEEDBACK)
    async def rate(request: Request) -> Response:
        """Rate an answer of your team by its attributes; it becomes a row of a next run."""
        return await answered(request, rated)

    @app.delete(f"{ROUTE}/{{id}}", response_model=FeedbackDeleted, **openapi.FEEDBACK_DELETED)
    async def delete(request: Request, id: str) -> Response:
        """Remove an answer's text and all its ratings."""
        return await answered(request, deleted)

    @app.delete(ROUTE, response_model=FeedbackDeleted, **openapi.FEEDBACK_DELETED)
    async def delete_all(request: Request) -> Response:
        """Remove all texts and ratings of your team."""
        return await answered(request, all_deleted)


def _allowed(backend: Backend, team: Team) -> Feedback:
    """Raises ProtocolError where feedback is off (404), or not for this team (403)."""
    if backend.feedback is None:
        message = (
            "feedback is off here, and no text is kept; the setting feedback.store, a folder or bucket, turns it on"
        )
        raise ProtocolError(message, code="feedback_off", status=404)
    if not team.feedback:
        message = f"team {team.name!r} gives no feedback, and its texts are not kept: it needs feedback: true in teams"
        raise ProtocolError(message, code="feedback_forbidden", status=403, kind="permission_error")
    return backend.feedback
