"""A parsed text completion in, what the policy is to generate out. Knows no HTTP and no Ray.

A raw prompt has no place for attributes, and whoever writes one could write any of them into it. So teams with profiles
cannot use the route, and a request that names a profile or attributes is refused.
"""

from dataclasses import replace

from actors.generation.protocol import Sampling
from serve.admission import AdmittedRequest, RequestLimits, numbered, sampling_fields
from serve.auth import Team
from serve.completion_reply import CompletionReply
from serve.completion_request import CompletionRequest
from serve.guidance import require_guidance
from serve.models import AddressedModel, ServedPolicies
from serve.protocol import ProtocolError
from serve.rate_limits import RequestCost
from serve.request import GenerationRequest
from serve.requested import HEADER


def admitted_completion(
    sent: CompletionRequest, team: Team, models: ServedPolicies, limits: RequestLimits, header: str = ""
) -> AdmittedRequest:
    """`header`: attributes that stood in a header. Raises ProtocolError that names the field to fix."""
    addressed = models.addressed(sent.model, team)
    require_raw(team, addressed, header)
    model = addressed.policy
    reports_prompt = sent.echo and (sent.logprobs is not None or not sent.max_tokens)
    require_guidance(sent.guidance, model)
    generation = GenerationRequest(
        system="",
        messages=(),
        labels=(),
        attributes={},
        sampling=Sampling(
            max_tokens=min(sent.max_tokens, limits.longest(model)),
            logprobs=sent.logprobs,
            prompt_logprobs=(sent.logprobs or 0) if reports_prompt else None,
            cache_salt=team.name,
            **sampling_fields(sent, limits.sampling),
        ),
        stop=tuple(sent.stop),
        stream=sent.stream,
        special_tokens=sent.add_special_tokens,
        input_field="prompt",
        echo=sent.echo,
        guided_from=None if sent.guidance == 1 else sent.unguided_prompt,
    )
    generations = tuple(
        numbered(replace(generation, prompt=prompt), sent.seed, i) for prompt in sent.prompts for i in range(sent.n)
    )
    return AdmittedRequest(
        model=model,
        profile=None,
        requested={},
        generations=generations,
        reply=CompletionReply(model.name, sent.logprobs),
        score=False,
        best_of=False,
        include_usage=sent.include_usage,
        cost=RequestCost(
            prompt=sum(one.most_prompt_tokens_of_rows for one in generations[:: sent.n]),
            num_answers=len(generations),
            max_tokens=generation.sampling.max_tokens,
            num_rows=generation.num_rows,
            asked_by="n" if len(generations) == sent.n else "prompt",
        ),
        num_prompts=len(sent.prompts),
    )


def require_raw(team: Team, addressed: AddressedModel, header: str) -> None:
    """Raises ProtocolError if a profile or attributes are to hold, which a raw prompt cannot keep."""
    remedy = "use /v1/chat/completions"
    if team.profiles:
        wrong = f"team {team.name!r} answers under its profiles, and a raw prompt is under none"
        raise ProtocolError(f"{wrong}: {remedy}", "prompt", "profile_forbidden", 403)
    if addressed.profile or addressed.attributes:
        wrong = "model names a profile or attributes, and a raw prompt has none"
        raise ProtocolError(f"{wrong}: name {addressed.policy.name!r}, or {remedy}", "model", "unsupported_parameter")
    if header:
        raise ProtocolError(f"{HEADER} has attributes, and a raw prompt has none: {remedy}", HEADER)
