"""The policies that are served side by side, and which one a request gets. Knows no HTTP and no Ray."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from data.attributes import AttributeSchema
from data.calibration import Calibration
from serve.profiles import Profile, shipped
from serve.protocol import ProtocolError
from serve.request import PolicyInfo


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
    def profiles(self) -> dict[str, Profile]:
        return shipped(self.schema)

    @property
    def name(self) -> str:
        return self.info.name


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

    def named(self, name: str) -> ServedPolicy:
        """Raises ProtocolError (404) that lists them all."""
        if name not in self._policies:
            message = f"model {name[:60]!r} is not served here; served: {', '.join(self._policies)}"
            raise ProtocolError(message, "model", "model_not_found", 404)
        return self._policies[name]

    def pick(self, name: str | None) -> ServedPolicy:
        """The policy of a request: the one it names, or one drawn by weight."""
        if name is not None:
            return self.named(name)
        point = self._draw() * sum(policy.weight for policy in self)
        for policy in self:
            point -= policy.weight
            if point < 0:
                return policy
        return self.first

    def put(self, info: PolicyInfo) -> None:
        """The policy of that name now answers from another checkpoint."""
        self._policies[info.name] = replace(self._policies[info.name], info=info)
