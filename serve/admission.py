"""A parsed request in, the jobs that answer it out: the model, the profile, the dials and the limits. Knows no HTTP and no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.attributes import AttributeProblem, AttributeSchema, Values
from data.errors import UserError
from serve.models import Model, Models
from serve.parser import attribute_problem, numbers
from serve.profiles import find, resolve
from serve.protocol import ChatRequest, ProtocolError, Steering
from serve.reply import Reply
from serve.request import Job
from serve.teams import Team


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_new_tokens: int
    max_body_bytes: int


@dataclass(frozen=True)
class Admitted:
    """A request that will be answered."""

    asked: ChatRequest
    model: Model
    profile: str | None
    jobs: tuple[Job, ...]
    reply: Reply

    @property
    def measures(self) -> bool:
        """Are the answers to be rated?"""
        return self.asked.score or self.asked.best_of is not None


def admitted(asked: ChatRequest, team: Team, models: Models, limits: Limits, can_score: bool) -> Admitted:
    """Raises WireProblem naming the field to mend."""
    model = models.pick(asked.model)
    field, max_tokens = asked.answer_limit
    if max_tokens is not None and max_tokens > limits.max_new_tokens:
        raise ProtocolError(
            f"{field} is {max_tokens}; allowed: a whole number from 1 to {limits.max_new_tokens}", field
        )
    if (asked.score or asked.best_of) and not can_score:
        what = "score" if asked.score else "best_of"
        raise ProtocolError(
            f"{what} needs an attribute predictor, and none is served here: leave it out, or start the endpoint with one (predictor=URI)",
            what,
        )
    profile = team.profile(asked.profile)
    requested = numbers(asked.attributes)
    effective = _effective(model, profile, requested)
    job = Job(
        system=asked.system,
        messages=asked.turns,
        labels=tuple(_label(model.schema, field, given) for field, given in asked.answers),
        attributes=effective,
        max_tokens=max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.seed,
        stop=tuple(asked.stop),
        stream=asked.stream,
    )
    jobs = tuple(replace(job, seed=None if job.seed is None else job.seed + i) for i in range(asked.best_of or asked.n))
    return Admitted(asked, model, profile, jobs, Reply(model.name, Steering(requested=requested, effective=effective)))


def _effective(model: Model, profile: str | None, requested: Mapping[str, Any]) -> dict[str, int]:
    try:
        chosen = None if profile is None else find(model.profiles, profile[:60])
    except UserError as problem:
        raise ProtocolError(str(problem), "profile", "unknown_profile") from None
    try:
        return resolve(model.schema, chosen, requested)
    except AttributeProblem as problem:
        raise attribute_problem(problem) from None


def _label(schema: AttributeSchema, field: str, given: Mapping[str, Any] | None) -> Values | None:
    try:
        return None if given is None else schema.checked(numbers(given))
    except AttributeProblem as problem:
        raise attribute_problem(problem, field) from None
