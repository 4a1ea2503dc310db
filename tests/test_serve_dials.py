"""OpenAI's dials: which attribute each one sets, and to what."""

import pytest

from data.attributes import SHIPPED, Attribute, AttributeSchema
from serve.dials import attribute_of, described, value_at
from serve.profiles import shipped

LAB = SHIPPED["lab"]
REASONER = AttributeSchema(
    name="own", attributes=(Attribute(name="reasoning", high=8, default=3, meaning="Steps.", better="neither"),)
)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [(None, (0, 2, 4)), ("gaming", (0, 2, 3)), ("education", (0, 2, 4)), ("accessibility", (0, 1, 2))],
)
def test_a_dial_stays_within_the_profile_s_range(profile: str | None, expected: tuple[int, ...]) -> None:
    rules = shipped(LAB)[profile] if profile else None
    assert tuple(value_at(LAB["verbosity"], rules, "verbosity", s) for s in ("low", "medium", "high")) == expected


def test_a_locked_attribute_stays_where_it_is() -> None:
    locked = shipped(LAB)["support"]
    assert {value_at(LAB["helpfulness"], locked, "verbosity", s) for s in ("low", "high")} == {4}


def test_a_dial_without_an_attribute_of_its_meaning_is_not_described() -> None:
    assert set(described(LAB)) == {"verbosity"}
    assert attribute_of(LAB, "reasoning_effort") is None
    assert described(REASONER) == {
        "reasoning_effort": {
            "attribute": "reasoning",
            "values": {"none": 0, "minimal": 0, "low": 2, "medium": 4, "high": 8, "xhigh": 8, "max": 8},
        }
    }
