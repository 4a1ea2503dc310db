"""Named dial settings for an audience: per attribute a default, an allowed range, a lock; and what a request's dials come to under one.

Knows no keys and no teams: it is told which profile a request is under.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from data.attributes import AttributeProblem, AttributeSchema
from data.errors import UserError
from data.record import Record


class Dial(Record):
    """One attribute under a profile, in the units of the schema."""

    default: int
    """What is asked for when the caller says nothing."""
    low: int
    """Smallest value a caller may set."""
    high: int
    """Largest value a caller may set."""
    locked: bool = False
    """If so, it stays at its default whatever the caller says."""

    @model_validator(mode="after")
    def _range(self) -> "Dial":
        if not self.low <= self.default <= self.high:
            raise UserError(f"default {self.default} is outside {self.low}..{self.high}; move one of them")
        return self


class Profile(Record):
    """Dials for an audience; an attribute that is not named keeps the schema's default and range."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """As callers write it."""
    meaning: str
    """One sentence for people who choose one."""
    dials: dict[str, Dial]
    """Attribute name -> its dial."""

    def dial(self, schema: AttributeSchema, name: str) -> Dial:
        """The dial of any attribute of `schema`; one that callers may not steer is locked."""
        attribute = schema[name]
        if not attribute.steerable:
            return Dial(default=attribute.default, low=attribute.low, high=attribute.high, locked=True)
        return self.dials.get(name) or Dial(default=attribute.default, low=attribute.low, high=attribute.high)


class Share(Record):
    """A dial of a shipped profile, as shares of an attribute's range, so that it fits a 0-4 schema and a 0-9 one."""

    default: float = Field(ge=0, le=1)
    """0 = the attribute's lowest value, 1 = its highest."""
    low: float = Field(0, ge=0, le=1)
    """Smallest share a caller may set."""
    high: float = Field(1, ge=0, le=1)
    """Largest share a caller may set."""
    locked: bool = False
    """See Dial."""


_AT_LOWEST = Share(default=0, high=0, locked=True)
_AT_HIGHEST = Share(default=1, low=1, locked=True)
_GOOD = Share(default=1, low=0.5)

_SHIPPED: dict[str, tuple[str, dict[str, Share]]] = {
    "gaming": (
        "Characters in a game: playful and inventive, a little rude at most.",
        {
            "humor": Share(default=0.75, low=0.25),
            "creativity": Share(default=0.75, low=0.25),
            "toxicity": Share(default=0, high=0.25),
            "violence": Share(default=0, high=0.5),
            "verbosity": Share(default=0.25, high=0.75),
        },
    ),
    "education": (
        "Tutors: right and helpful answers in plain words, never rude.",
        {
            "helpfulness": _GOOD,
            "correctness": _AT_HIGHEST,
            "quality": _GOOD,
            "coherence": _GOOD,
            "complexity": Share(default=0.25, high=0.75),
            "verbosity": Share(default=0.5),
            "humor": Share(default=0.25, high=0.75),
            "toxicity": _AT_LOWEST,
            "violence": _AT_LOWEST,
            "not_appropriate": _AT_LOWEST,
        },
    ),
    "accessibility": (
        "Easy to read or to hear read out: short, plain, no word play.",
        {
            "helpfulness": _GOOD,
            "coherence": _AT_HIGHEST,
            "complexity": Share(default=0, high=0.25),
            "verbosity": Share(default=0.25, high=0.5),
            "creativity": Share(default=0, high=0.25),
            "humor": Share(default=0, high=0.5),
            "toxicity": _AT_LOWEST,
            "violence": _AT_LOWEST,
            "not_appropriate": _AT_LOWEST,
        },
    ),
    "support": (
        "Customer support: helpful, to the point, in earnest.",
        {
            "helpfulness": _AT_HIGHEST,
            "correctness": _AT_HIGHEST,
            "quality": _GOOD,
            "verbosity": Share(default=0.25, high=0.75),
            "creativity": Share(default=0, high=0.25),
            "humor": Share(default=0, high=0.25),
            "toxicity": _AT_LOWEST,
            "violence": _AT_LOWEST,
            "not_appropriate": _AT_LOWEST,
        },
    ),
}


NAMES = tuple(_SHIPPED)
"""Of the shipped profiles."""


def shipped(schema: AttributeSchema) -> dict[str, Profile]:
    """The shipped profiles, cut to the attributes of `schema` and scaled to their ranges.

    Micro-example: humor 0-4 in gaming -> default 3, allowed 1..4; humor 0-9 -> default 7, allowed 2..9.
    """
    profiles = {}
    for name, (meaning, shares) in _SHIPPED.items():
        dials = {
            a.name: _scaled(shares[a.name], a.low, a.high)
            for a in schema.attributes
            if a.steerable and a.name in shares
        }
        profiles[name] = Profile(name=name, meaning=meaning, dials=dials)
    return profiles


def _scaled(share: Share, low: int, high: int) -> Dial:
    default, lowest, highest = (low + round(part * (high - low)) for part in (share.default, share.low, share.high))
    return Dial(default=default, low=lowest, high=highest, locked=share.locked)


def find(profiles: Mapping[str, Profile], name: str) -> Profile:
    """Raises UserError that lists them all."""
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown profile {name!r}{hint}; there are {', '.join(profiles)}")
    return profiles[name]


def resolve(schema: AttributeSchema, profile: Profile | None, requested: Mapping[str, Any]) -> dict[str, int]:
    """What stands in the prompt: every attribute of the schema, rounded; `requested` where given, else the profile's or the schema's default.

    Raises AttributeProblem naming the attribute, what is allowed, and the profile if it is the profile that forbids.
    """
    values = schema.checked(requested)
    effective = {}
    for attribute in schema.attributes:
        name = attribute.name
        dial = (profile or _NO_PROFILE).dial(schema, name)
        value = values.get(name, dial.default)
        # Asking for the locked value is no harm: a page that sends all its sliders does so.
        if dial.locked and value != dial.default:
            by = (
                f"profile {profile.name!r} locks it"
                if profile is not None and attribute.steerable
                else "it is not for callers to set and stays"
            )
            raise AttributeProblem(name, f"attribute {name!r} got {value:g}, but {by} at {dial.default}: leave it out")
        if not dial.locked and not dial.low <= value <= dial.high:
            who = f"profile {profile.name!r}" if profile is not None else "the schema"
            raise AttributeProblem(
                name, f"attribute {name!r} got {value:g}, but {who} allows a number from {dial.low} to {dial.high}"
            )
        effective[name] = attribute.rounded(value)
    return effective


_NO_PROFILE = Profile(name="none", meaning="The schema's own defaults and ranges.", dials={})
