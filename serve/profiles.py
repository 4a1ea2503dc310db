"""Profiles: for an audience, each attribute's default, its allowed range, and whether it is locked.

`resolve` applies one to a request: a locked attribute cannot be set. Knows no keys and no teams.
"""

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import Field, model_validator

from data.attributes import Attribute, AttributeProblem, AttributeSchema
from data.bounds import MAX_GUIDANCE, MostGuidance, ScaleValue
from data.errors import UserError
from data.record import Record


class AttributeRule(Record):
    """One attribute under a profile, in the units of the schema."""

    default: ScaleValue
    """Value where the request sets none."""
    low: ScaleValue
    """Smallest value a caller may set."""
    high: ScaleValue
    """Largest value a caller may set."""
    locked: bool = False
    """A locked attribute cannot be set: it stays at its default."""

    def narrows(self, attribute: Attribute) -> bool:
        """Does it allow less than the schema?"""
        return self.locked or (self.low, self.high) != (attribute.low, attribute.high)

    @model_validator(mode="after")
    def _range(self) -> "AttributeRule":
        if not self.low <= self.default <= self.high:
            raise UserError(f"default {self.default} is outside {self.low}..{self.high}; move one of them")
        return self


class Profile(Record):
    """Rules for an audience; an attribute that is not named keeps the schema's default and range."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """As callers write it."""
    meaning: str
    """One sentence for people who choose one."""
    attributes: dict[str, AttributeRule]
    """Attribute name -> its rule."""
    max_guidance: MostGuidance = MAX_GUIDANCE
    """Largest `guidance` that a caller may set; 1 = none. An attribute that the profile locks or narrows is never
    guided."""

    def rule(self, attribute: Attribute) -> AttributeRule:
        """The rule of any attribute of the schema; one that callers may not steer is locked."""
        plain = AttributeRule(
            default=attribute.default, low=attribute.low, high=attribute.high, locked=not attribute.steerable
        )
        return self.attributes.get(attribute.name, plain) if attribute.steerable else plain


def rule_of(attribute: Attribute, profile: Profile | None) -> AttributeRule:
    """The rule of an attribute, also where a request has no profile."""
    return (profile or _NO_PROFILE).rule(attribute)


def resolve(schema: AttributeSchema, profile: Profile | None, requested: Mapping[str, float]) -> dict[str, int]:
    """The effective value of every attribute, rounded: `requested`, else the profile's or the schema's default.

    `requested` has passed `schema.checked`. Raises AttributeProblem if the profile locks an attribute or allows less.
    """
    profile = profile or _NO_PROFILE
    effective = {}
    for attribute in schema.attributes:
        name, rule = attribute.name, profile.rule(attribute)
        value = requested.get(name, rule.default)
        if rule.locked:
            _require_default(attribute, value, rule, profile)
        elif not rule.low <= value <= rule.high:
            allowed = f"profile {profile.name!r} allows a number from {rule.low} to {rule.high}"
            raise AttributeProblem(name, f"attribute {name!r} got {value:g}, but {allowed}")
        effective[name] = attribute.rounded(value)
    return effective


def _require_default(attribute: Attribute, value: float, rule: AttributeRule, profile: Profile) -> None:
    """A locked attribute cannot be set. Its own value is no error: a page that sends all its sliders sends that one."""
    if value != rule.default:
        reason = "it is not for callers to set and stays"
        if attribute.steerable:
            reason = f"profile {profile.name!r} locks it"
        message = f"attribute {attribute.name!r} got {value:g}, but {reason} at {rule.default}: leave it out"
        raise AttributeProblem(attribute.name, message)


def find(profiles: Mapping[str, Profile], name: str) -> Profile:
    """The profile called `name`; raises UserError that lists them all."""
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown profile {name!r}{hint}; there are {', '.join(profiles)}")
    return profiles[name]


class Share(NamedTuple):
    """A rule of a shipped profile, as shares of an attribute's range, so that it fits a 0-4 schema and a 0-9 one."""

    default: float
    low: float = 0
    high: float = 1
    locked: bool = False

    def rule(self, attribute: Attribute) -> AttributeRule:
        """Micro-example: Share(0.75, low=0.25) of 0..4 -> default 3, allowed 1..4; of 0..9 -> 7, 2..9."""
        low, width = attribute.low, attribute.high - attribute.low
        default, lowest, highest = (low + round(share * width) for share in (self.default, self.low, self.high))
        return AttributeRule(default=default, low=lowest, high=highest, locked=self.locked)


_GOOD, _AT_HIGHEST, _AT_LOWEST = Share(1, low=0.5), Share(1, low=1, locked=True), Share(0, high=0, locked=True)
_HARMLESS = dict.fromkeys(("toxicity", "violence", "not_appropriate"), _AT_LOWEST)
_NO_PROFILE = Profile(name="none", meaning="The schema's own defaults and ranges.", attributes={})

_SHIPPED: dict[str, tuple[str, dict[str, Share]]] = {
    "gaming": (
        "Characters in a game: playful and inventive, a little rude at most.",
        {
            "humor": Share(0.75, low=0.25),
            "creativity": Share(0.75, low=0.25),
            "toxicity": Share(0, high=0.25),
            "violence": Share(0, high=0.5),
            "verbosity": Share(0.25, high=0.75),
        },
    ),
    "education": (
        "Tutors: right and helpful answers in plain words, never rude.",
        {
            "helpfulness": _GOOD,
            "correctness": _AT_HIGHEST,
            "quality": _GOOD,
            "coherence": _GOOD,
            "complexity": Share(0.25, high=0.75),
            "verbosity": Share(0.5),
            "humor": Share(0.25, high=0.75),
            **_HARMLESS,
        },
    ),
    "accessibility": (
        "Easy to read or to hear read out: short, plain, no word play.",
        {
            "helpfulness": _GOOD,
            "coherence": _AT_HIGHEST,
            "complexity": Share(0, high=0.25),
            "verbosity": Share(0.25, high=0.5),
            "creativity": Share(0, high=0.25),
            "humor": Share(0, high=0.5),
            **_HARMLESS,
        },
    ),
    "support": (
        "Customer support: helpful, to the point, in earnest.",
        {
            "helpfulness": _AT_HIGHEST,
            "correctness": _AT_HIGHEST,
            "quality": _GOOD,
            "verbosity": Share(0.25, high=0.75),
            "creativity": Share(0, high=0.25),
            "humor": Share(0, high=0.25),
            **_HARMLESS,
        },
    ),
}
NAMES = tuple(_SHIPPED)
"""Of the shipped profiles."""


def shipped(schema: AttributeSchema) -> dict[str, Profile]:
    """The shipped profiles, with the attributes of `schema` and scaled to their ranges."""
    return {
        name: Profile(
            name=name,
            meaning=meaning,
            attributes={a.name: shares[a.name].rule(a) for a in schema.attributes if a.steerable and a.name in shares},
        )
        for name, (meaning, shares) in _SHIPPED.items()
    }
