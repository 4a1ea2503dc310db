"""A responses request in, what the policy is to generate out: admitted as the chat completion that asks the same.

Knows no HTTP and no Ray.
"""

from dataclasses import replace
from typing import Any

from serve.admission import AdmittedRequest, RequestLimits, admitted
from serve.auth import Team
from serve.json_body import json_object, shown
from serve.models import ServedPolicies
from serve.parser import chat_of
from serve.protocol import ProtocolError
from serve.reply import ChatReply
from serve.request import GenerationRequest
from serve.responses_reply import ResponsesReply
from serve.responses_request import chat_body, renamed, text_of
from serve.responses_tools import ToolResponsesReply
from serve.tool_reply import ToolReply


def admitted_response(
    body: bytes, team: Team, models: ServedPolicies, limits: RequestLimits, can_score: bool, header: str
) -> tuple[AdmittedRequest, frozenset[str]]:
    """With what the caller sent that is not used. Raises ProtocolError that names the field of this route."""
    raw = json_object(body)
    _require_few(raw, limits.max_messages)
    metadata = _metadata(raw)
    instructions = text_of(raw.get("instructions") or "", "instructions") or None
    sent = chat_body(raw)
    try:
        chat, unused = chat_of(sent, limits.ignore_tools)
        accepted = admitted(chat, team, models, limits, can_score, header)
    except ProtocolError as problem:
        raise renamed(problem, num_before=int(instructions is not None)) from None
    return (
        replace(
            accepted,
            generations=tuple(
                replace(one, grammar_field=_grammar_field(one), input_field="input") for one in accepted.generations
            ),
            reply=_reply(accepted, raw, metadata, instructions),
            include_usage=True,  # the last event has the counts
        ),
        unused,
    )


def _grammar_field(generation: GenerationRequest) -> str:
    return "text.format" if generation.grammar_field == "response_format" else generation.grammar_field


def _reply(
    accepted: AdmittedRequest,
    raw: dict[str, Any],
    metadata: dict[str, str],
    instructions: str | None,
) -> ResponsesReply:
    own = accepted.reply
    assert isinstance(own, ChatReply), "a chat completion has a reply of its own"
    sampling = accepted.generations[0].sampling
    if not isinstance(own, ToolReply):
        return ResponsesReply(accepted.model.name, own.steering, sampling, metadata, instructions)
    tools = {"tools": raw.get("tools"), "tool_choice": raw.get("tool_choice") or "auto"}
    return ToolResponsesReply(accepted.model.name, own.steering, sampling, metadata, instructions, own.wanted, tools)


def _require_few(raw: dict[str, Any], max_messages: int) -> None:
    if isinstance(sent := raw.get("input"), list) and len(sent) > max_messages:
        raise ProtocolError(f"input has {len(sent)} entries; allowed: at most {max_messages}", "input")


def _metadata(raw: dict[str, Any]) -> dict[str, str]:
    sent = raw.get("metadata") or {}
    if not isinstance(sent, dict) or not all(isinstance(value, str) for value in sent.values()):
        raise ProtocolError(f"metadata is {shown(sent)}; allowed: an object of texts", "metadata")
    return sent
