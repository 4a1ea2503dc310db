"""Guidance of a request: which values the prompt has that its answer is led away from, and what a profile allows.

Knows no HTTP, no engine and no arithmetic (`actors.generation.guidance`).
"""

from collections.abc import Mapping

from data.attributes import AttributeProblem, AttributeSchema
from data.bounds import MAX_GUIDANCE
from serve.chat_request import ChatRequest
from serve.models import ServedPolicy
from serve.profiles import Profile, rule_of
from serve.protocol import ProtocolError
from serve.tolerance import unsupported


def require_guidance(guidance: float, model: ServedPolicy) -> None:
    """Raises ProtocolError if the engine of `model` guides nothing."""
    if guidance != 1 and model.info.no_guidance:
        why = f"{guidance:g} is not possible with model {model.name!r}: {model.info.no_guidance}"
        raise unsupported("guidance", why)


def guided_from(
    chat: ChatRequest, model: ServedPolicy, profile: Profile | None, effective: Mapping[str, int]
) -> dict[str, int] | None:
    """The values in the prompt that the answer is led away from; None = no guidance.

    An attribute that the profile locks or narrows has its effective value there too: guidance goes beyond the values of
    the two prompts, and so would go beyond what the profile allows. Raises ProtocolError that names the field.
    """
    named = _named(chat, model.schema)
    if chat.guidance == 1:
        return None
    require_guidance(chat.guidance, model)
    if profile is not None and chat.guidance > profile.max_guidance:
        allowed = f"profile {profile.name!r} allows a number from 0 to {profile.max_guidance:g}"
        raise ProtocolError(f"guidance is {chat.guidance:g}, but {allowed}", "guidance")
    kept = {a.name: effective[a.name] for a in model.schema.attributes if rule_of(a, profile).narrows(a)}
    for name, value in (named or {}).items():
        if name in kept and kept[name] != value:
            whose = "the schema" if profile is None else f"profile {profile.name!r}"
            why = f"{whose} limits attribute {name!r}, so that guidance must not move it: leave it out"
            raise ProtocolError(f"guidance_from: {why}", f"guidance_from.{name}", "invalid_attribute")
    return kept if named is None else {**effective, **named}


def described(model: ServedPolicy) -> dict[str, float] | None:
    """The range for `GET /v1/attributes`; None = its engine guides nothing."""
    return None if model.info.no_guidance else {"low": 0, "high": MAX_GUIDANCE, "default": 1}


def _named(chat: ChatRequest, schema: AttributeSchema) -> dict[str, int] | None:
    if not chat.guidance_from:
        return None
    try:
        checked = schema.checked(chat.guidance_from)
    except AttributeProblem as problem:
        where = f"guidance_from.{problem.attribute}"
        raise ProtocolError(f"guidance_from: {problem}", where, "invalid_attribute") from None
    return {name: schema[name].rounded(value) for name, value in checked.items()}
