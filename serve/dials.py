"""OpenAI's own dials, `verbosity` and `reasoning_effort`: which attribute of a schema each one sets, and to what.

Knows no request, no HTTP and no key.
"""

from collections.abc import Mapping
from types import MappingProxyType

from data.attributes import Attribute, AttributeSchema
from serve.profiles import Profile, rule_of

POSITIONS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "verbosity": {"low": 0, "medium": 0.5, "high": 1},
        "reasoning_effort": {"none": 0, "minimal": 0, "low": 0.25, "medium": 0.5, "high": 1, "xhigh": 1, "max": 1},
    }
)
"""Dial -> its settings, as shares of the range that the profile allows."""
MEANT = MappingProxyType(
    {"verbosity": ("verbosity", "length"), "reasoning_effort": ("reasoning_effort", "reasoning", "effort")}
)
"""Dial -> names of attributes with its meaning; a schema's first one counts."""
NEUTRAL = MappingProxyType({"verbosity": ("medium",), "reasoning_effort": ("none", "medium")})
"""What asks for nothing where no attribute has the meaning: what OpenAI's models do by themselves."""


def attribute_of(schema: AttributeSchema, dial: str) -> Attribute | None:
    """The attribute that a dial sets; None if the schema has none of its meaning."""
    return next((schema[name] for name in MEANT[dial] if name in schema.names), None)


def value_at(attribute: Attribute, profile: Profile | None, dial: str, setting: str) -> int:
    """The attribute's value at a dial's setting, within the profile's range; a locked one stays at its default.

    Micro-example: verbosity of 0..4 at "high" -> 4, under a profile that allows 0..3 -> 3.
    """
    rule = rule_of(attribute, profile)
    share = POSITIONS[dial][setting]
    return rule.default if rule.locked else rule.low + round(share * (rule.high - rule.low))


def described(schema: AttributeSchema, profile: Profile | None = None) -> dict[str, dict[str, object]]:
    """Dial -> the attribute that it sets, and the value at each of its settings."""
    found = ((dial, attribute_of(schema, dial)) for dial in POSITIONS)
    return {
        dial: {
            "attribute": attribute.name,
            "values": {setting: value_at(attribute, profile, dial, setting) for setting in POSITIONS[dial]},
        }
        for dial, attribute in found
        if attribute is not None
    }
