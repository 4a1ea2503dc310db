"""The routes that generate, and how each reads its requests. Knows no Ray, no engine and no weights."""

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve import openapi, tokenizing
from serve.admission import AdmittedRequest, admitted
from serve.auth import Team
from serve.backend import Backend
from serve.bodies import Bodies
from serve.completion_admission import admitted_completion
from serve.generation_route import Admit, GenerationRoute
from serve.parser import parse, parse_completion
from serve.responses_admission import admitted_response


def add_routes(app: FastAPI, backend: Backend, bodies: Bodies) -> None:
    """All of them share each team's limits."""
    limiter = backend.rate_limiter
    tokenizing.add_route(app, backend, bodies, limiter)

    def route(admit: Admit) -> GenerationRoute:
        return GenerationRoute(
            *(admit, backend.generate, backend.score, backend.keys, bodies, backend.telemetry, limiter),
            *(backend.feedback, backend.live),
        )

    def admitted_chat(body: bytes, team: Team, header: str) -> tuple[AdmittedRequest, frozenset[str]]:
        limits = backend.limits
        chat, unused = parse(body, limits.max_messages, limits.ignore_tools)
        return admitted(chat, team, backend.models, limits, backend.score is not None, header), unused

    def completion(body: bytes, team: Team, header: str) -> tuple[AdmittedRequest, frozenset[str]]:
        sent, unused = parse_completion(body)
        return admitted_completion(sent, team, backend.models, backend.limits, header), unused

    def response(body: bytes, team: Team, header: str) -> tuple[AdmittedRequest, frozenset[str]]:
        return admitted_response(body, team, backend.models, backend.limits, backend.score is not None, header)

    chat, completions, responses = route(admitted_chat), route(completion), route(response)

    @app.post("/v1/chat/completions", **openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation at the requested attributes."""
        return await chat(request)

    @app.post("/v1/responses", **openapi.RESPONSES)
    async def newer_responses(request: Request) -> Response:
        """The same in the shape of OpenAI's newer route: text in, text out."""
        return await responses(request)

    @app.post("/v1/completions", **openapi.COMPLETIONS)
    async def text_completions(request: Request) -> Response:
        """Go on with raw prompts: no template and no attributes."""
        return await completions(request)
