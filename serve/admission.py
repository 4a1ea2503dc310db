"""A parsed request in, a typed one out: model, profile, checked attributes, and what the policy is to generate.

Knows no HTTP and no Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from data.attributes import AttributeProblem, Values
from data.errors import UserError
from serve.auth import Team
from serve.bodies import BodyLimits
from serve.models import ServedPolicies, ServedPolicy
from serve.profiles import Profile, find, resolve
from serve.protocol import ChatRequest, ProtocolError
from serve.rate_limits import RequestCost
from serve.reply import ChatReply, Steering
from serve.request import GenerationRequest


@dataclass(frozen=True)
class RequestLimits:
    """What one request may cost."""

    max_new_tokens: int
    body: BodyLimits
    max_messages: int = 1024
    """Of one conversation."""
    max_rated_tokens: int = 1024
    """The most that the predictor reads of an answer and its conversation."""


@dataclass(frozen=True)
class AdmittedRequest:
    """A request that will be answered. After admission nothing is read from what the caller sent."""

    model: ServedPolicy
    profile: str | None
    generations: tuple[GenerationRequest, ...]
    """One for each answer; they differ in the seed."""
    reply: ChatReply
    score: bool
    """Return what the predictor measures?"""
    best_of: bool
    """Return only the nearest of the answers?"""
    include_usage: bool
    """End a stream with the token counts?"""
    cost: RequestCost
    """The most that it can use."""

    @property
    def effective(self) -> Mapping[str, int]:
        return self.generations[0].attributes

    @property
    def stream(self) -> bool:
        return self.generations[0].stream


def admitted(
    chat: ChatRequest, team: Team, models: ServedPolicies, limits: RequestLimits, can_score: bool
) -> AdmittedRequest:
    """Raises ProtocolError that names the field to fix."""
    model = models.pick(chat.model)
    _require_possible(chat, limits, can_score)
    profile = team.profile(chat.profile)
    chosen = _chosen(model, profile)
    steering, labels = _steering(model, chosen, chat), _labels(model, chosen, chat)
    generation = GenerationRequest(
        system=chat.system,
        messages=chat.turns,
        labels=labels,
        attributes=steering.effective,
        max_tokens=chat.answer_limit[1],
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        seed=chat.seed,
        stop=tuple(chat.stop),
        stream=chat.stream,
        cache_salt=team.name,
    )
    seeds = (None if chat.seed is None else chat.seed + i for i in range(chat.best_of or chat.n))
    return AdmittedRequest(
        model=model,
        profile=profile,
        generations=tuple(replace(generation, seed=seed) for seed in seeds),
        reply=ChatReply(model.name, steering),
        score=chat.score,
        best_of=chat.best_of is not None,
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        cost=_cost(chat, generation, limits),
    )


def _require_possible(chat: ChatRequest, limits: RequestLimits, can_score: bool) -> None:
    field, max_tokens = chat.answer_limit
    if max_tokens is not None and max_tokens > limits.max_new_tokens:
        allowed = f"a whole number from 1 to {limits.max_new_tokens}"
        raise ProtocolError(f"{field} is {max_tokens}; allowed: {allowed}", field)
    if (chat.score or chat.best_of) and not can_score:
        what = "score" if chat.score else "best_of"
        remedy = "leave it out, or start the endpoint with one (predictor=URI)"
        raise ProtocolError(f"{what} needs an attribute predictor, and none is served here: {remedy}", what)


def _cost(chat: ChatRequest, generation: GenerationRequest, limits: RequestLimits) -> RequestCost:
    num_answers = chat.best_of or chat.n
    num_rated = num_answers if chat.best_of else 0 if not chat.score else 1 if chat.stream else num_answers
    return RequestCost(
        prompt=generation.most_prompt_tokens,
        num_answers=num_answers,
        max_tokens=limits.max_new_tokens if generation.max_tokens is None else generation.max_tokens,
        num_rated=num_rated,
        max_rated=limits.max_rated_tokens,
    )


def _chosen(model: ServedPolicy, profile: str | None) -> Profile | None:
    try:
        return None if profile is None else find(model.profiles, profile[:60])
    except UserError as problem:
        raise ProtocolError(str(problem), "profile", "unknown_profile") from None


def _steering(model: ServedPolicy, profile: Profile | None, chat: ChatRequest) -> Steering:
    try:
        requested = model.schema.checked(chat.attributes)
        return Steering(requested=requested, effective=resolve(model.schema, profile, requested))
    except AttributeProblem as problem:
        raise _wrong_attribute("attributes", problem) from None


def _labels(model: ServedPolicy, profile: Profile | None, chat: ChatRequest) -> tuple[Values | None, ...]:
    """The attributes of earlier answers, which enter the prompt: the profile's rules hold for them too."""
    labels = []
    for field, values in chat.answers:
        try:
            checked = None if values is None else model.schema.checked(values)
            resolve(model.schema, profile, checked or {})
            labels.append(checked)
        except AttributeProblem as problem:
            raise _wrong_attribute(field, problem) from None
    return tuple(labels)


def _wrong_attribute(field: str, problem: AttributeProblem) -> ProtocolError:
    return ProtocolError(f"{field}: {problem}", f"{field}.{problem.attribute}", "invalid_attribute")
