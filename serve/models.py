"""The policies that are served side by side, and which one a request gets. Knows no HTTP and no Ray."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from data.attributes import AttributeSchema
from data.calibration import Calibration
from data.text_rater import TextRater
from serve.auth import EVERYONE, Team
from serve.profiles import Profile, shipped
from serve.protocol import ProtocolError
from serve.request import PolicyInfo

PROFILE_SIGN, ATTRIBUTES_SIGN = ":", "@"
"""In `model`: demo:education@humor=4. No name that the settings allow has one of them."""


@dataclass(frozen=True)
class ServedPolicy:
    """One served policy; callers know it as `model`."""

    info: PolicyInfo
    weight: float = 1.0
    """Its share of the requests that name no model; 0 = only those that name it."""

    @cached_property
    def schema(self) -> AttributeSchema:
        return AttributeSchema.model_validate_json(self.info.schema_json)

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration.model_validate_json(self.info.calibration_json)

    @cached_property
    def text_rater(self) -> TextRater:
        return TextRater.model_validate_json(self.info.text_rater_json)

    @cached_property
    def profiles(self) -> dict[str, Profile]:
        return shipped(self.schema)

    @property
    def name(self) -> str:
        return self.info.name

    def measured(self, values: Mapping[str, float], answer: str) -> dict[str, float]:
        """A predictor's values of a whole answer on the scale of the policy's labels, or the text's own where that is
        what the labels were."""
        if values and (others := self.text_rater.raters(())):
            own = {name: value for name, value in values.items() if name not in others}
            values = own | self.text_rater(answer)
        return {name: round(value, 4) for name, value in self.calibration(values).items()}

    def named_with(self, profile: str) -> str:
        """The name under which it answers with a profile of its own accord."""
        return f"{self.name}{PROFILE_SIGN}{profile}"


@dataclass(frozen=True)
class AddressedModel:
    """What a request's `model` names."""

    policy: ServedPolicy
    profile: str | None = None
    attributes: str = ""
    """As `serve.requested.assignments` reads them."""


class ServedPolicies:
    """All of them; pages and schemas are about the first unless another is named."""

    def __init__(self, policies: Sequence[ServedPolicy], draw: Callable[[], float] = random.random):
        self._policies = {policy.name: policy for policy in policies}
        self._draw = draw

    def __iter__(self) -> Iterator[ServedPolicy]:
        return iter(self._policies.values())

    @property
    def first(self) -> ServedPolicy:
        return next(iter(self))

    def of(self, team: Team) -> list[ServedPolicy]:
        """Those that a team may use. Raises ProtocolError (403) if there are none."""
        found = [policy for policy in self if team.may_use(policy.name)]
        if not found:
            message = f"team {team.name!r} may use {', '.join(team.models)}, and none of them is served now"
            raise ProtocolError(message, "model", "model_forbidden", 403)
        return found

    def named(self, name: str, team: Team = EVERYONE) -> ServedPolicy:
        """Raises ProtocolError (404) that lists those that the team may use."""
        if name not in self._policies:
            served = self.of(team)
            also = f"; also with a profile, as {served[0].named_with(next(iter(served[0].profiles)))}"
            names = ", ".join(policy.name for policy in served)
            message = f"model {name[:60]!r} is not served here; served: {names}{also}"
            raise ProtocolError(message, "model", "model_not_found", 404)
        return self._policies[name]

    def replicas_of(self, name: str) -> str:
        """The model whose replicas answer for it: of an adapter its base."""
        policy = self._policies.get(name, self.first)  # an adapter that was removed: they know
        return policy.info.base or policy.name

    def addressed(self, name: str | None, team: Team) -> AddressedModel:
        """What a request names: NAME, NAME:PROFILE, each also with @ATTRIBUTE=VALUE,...; nothing = one drawn by weight
        from those that the team may use.

        Raises ProtocolError: 404 that lists all names, 403 for a model that the team may not use.
        """
        if not name:
            return AddressedModel(self._drawn(self.of(team)))
        found = self._found(name, team)
        if not team.may_use(found.policy.name):
            message = f"team {team.name!r} may not use model {found.policy.name!r}; allowed: {', '.join(team.models)}"
            raise ProtocolError(message, "model", "model_forbidden", 403)
        return found

    def _found(self, name: str, team: Team) -> AddressedModel:
        if name in self._policies:
            return AddressedModel(self._policies[name])
        rest, _, attributes = name.partition(ATTRIBUTES_SIGN)
        if rest in self._policies:
            return AddressedModel(self._policies[rest], None, attributes)
        model, _, profile = rest.rpartition(PROFILE_SIGN)
        if model in self._policies and profile in self._policies[model].profiles:
            return AddressedModel(self._policies[model], profile, attributes)
        return AddressedModel(self.named(name, team))

    def _drawn(self, served: Sequence[ServedPolicy]) -> ServedPolicy:
        point = self._draw() * sum(policy.weight for policy in served)
        for policy in served:
            point -= policy.weight
            if point < 0:
                return policy
        return served[0]

    def put(self, info: PolicyInfo) -> None:
        """The policy of that name now answers from another checkpoint; an adapter may be new."""
        before = self._policies.get(info.name)
        new = ServedPolicy(info, 0.0) if before is None else replace(before, info=info)
        self._policies = {**self._policies, info.name: new}

    def remove(self, name: str) -> None:
        """An adapter is no longer served."""
        self._policies = {other: policy for other, policy in self._policies.items() if other != name}
