"""POST /tokenize, as vLLM has it: a text, or a conversation as the policy would get it, as token ids.

Knows no tokenizer, no Ray and no engine.
"""

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve import openapi
from serve.admission import admitted
from serve.auth import Team
from serve.backend import Backend
from serve.bodies import Bodies
from serve.generation_route import accounted
from serve.json_body import json_object
from serve.models import ServedPolicy
from serve.parser import chat_of, tokenize_of
from serve.protocol import ProtocolError
from serve.rate_limits import RateLimiter, RequestCost
from serve.request import Failed, GenerationRequest
from serve.requested import HEADER
from serve.telemetry import RequestContext
from serve.tokenize_request import TokenizeReply


def add_route(app: FastAPI, backend: Backend, bodies: Bodies, limiter: RateLimiter) -> None:
    """Its tokens count against the team's budget, as they cost the same work as a prompt's."""

    @app.post("/tokenize", response_model=TokenizeReply, **openapi.TOKENIZE)
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or of a conversation at the requested attributes."""
        context = backend.telemetry.arrived("/tokenize")
        return await accounted(context, tokenized(request, context))

    async def tokenized(request: Request, context: RequestContext) -> Response:
        team = backend.team(request)
        context.team, context.answers = team.name, 0
        body = await bodies.read(request, team.name)
        names, model, generation = _asked(body, team, backend, ",".join(request.headers.getlist(HEADER)))
        context.model = model.name
        cost = RequestCost(generation.most_prompt_tokens, num_answers=0, max_tokens=0, asked_by=generation.input_field)
        async with limiter.answers(team, 1, cost) as reservation:
            found = await backend.tokenize(model.name, generation, names)
            if isinstance(found, Failed):
                raise found.problem()
            reservation.use(len(found.ids))
        context.prompt_tokens = len(found.ids)
        reply = TokenizeReply(
            count=len(found.ids), max_model_len=model.info.context, tokens=found.ids, token_strs=found.names
        )
        context.end(200)
        return Response(reply.model_dump_json(), media_type="application/json")


def _asked(body: bytes, team: Team, backend: Backend, header: str) -> tuple[bool, ServedPolicy, GenerationRequest]:
    """(whether each token's text is asked for, the model, what is to be tokenized); raises ProtocolError."""
    raw = json_object(body, backend.limits.max_messages)
    if "messages" not in raw:
        sent = tokenize_of(raw)
        model = backend.models.addressed(sent.model, team).policy
        generation = GenerationRequest(
            *("", (), (), {}),
            prompt=sent.prompt,
            special_tokens=sent.add_special_tokens,
            input_field="prompt",
        )
        return sent.return_token_strs, model, generation
    names = raw.pop("return_token_strs", None) or False
    if not isinstance(names, bool):
        raise ProtocolError("return_token_strs is no true or false; allowed: true or false", "return_token_strs")
    if raw.get("add_special_tokens") is False:  # as it is: the template writes them
        del raw["add_special_tokens"]
    chat = chat_of(raw, backend.limits.ignore_tools).chat
    accepted = admitted(chat, team, backend.models, backend.limits, backend.score is not None, header)
    return names, accepted.model, accepted.generations[0]
