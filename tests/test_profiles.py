"""Profiles: shipped ones fit every shipped schema; an error names the profile that limits or locks."""

import pytest

from data.attributes import SHIPPED, Attribute, AttributeProblem, AttributeSchema
from serve.profiles import AttributeRule, Profile, find, resolve, shipped

LAB = SHIPPED["lab"]


@pytest.mark.parametrize("schema", SHIPPED.values(), ids=list(SHIPPED))
def test_shipped_profiles_fit_every_schema(schema: AttributeSchema) -> None:
    profiles = shipped(schema)
    assert list(profiles) == ["gaming", "education", "accessibility", "support"]
    for profile in profiles.values():
        assert profile.attributes
        assert set(profile.attributes) <= set(schema.names)
        for name, rule in profile.attributes.items():
            assert schema[name].low <= rule.low <= rule.default <= rule.high <= schema[name].high
        assert set(resolve(schema, profile, {})) == set(schema.names)


def test_a_profile_scales_to_the_range() -> None:
    assert shipped(LAB)["gaming"].attributes["humor"] == AttributeRule(default=3, low=1, high=4)
    assert shipped(SHIPPED["steerlm_paper"])["gaming"].attributes["humor"] == AttributeRule(default=7, low=2, high=9)


def test_without_a_profile_the_schema_decides() -> None:
    assert resolve(LAB, None, {}) == LAB.defaults()
    assert resolve(LAB, None, {"humor": 2.5, "verbosity": 3.5}) == {**LAB.defaults(), "humor": 2, "verbosity": 4}
    assert list(resolve(LAB, None, {"verbosity": 1, "humor": 1})) == list(LAB.names)


@pytest.mark.parametrize(
    ("requested", "attribute"),
    [({"humor": 5}, "humor"), ({"humor": -0.1}, "humor"), ({"humour": 1}, "humour"), ({"humor": "2"}, "humor")],
)
def test_the_schema_s_own_limits(requested: dict[str, object], attribute: str) -> None:
    with pytest.raises(AttributeProblem) as caught:
        resolve(LAB, None, LAB.checked(requested))
    assert caught.value.attribute == attribute
    assert "0 to 4" in str(caught.value) or "did you mean 'humor'" in str(caught.value)


def test_a_profile_s_defaults_limits_and_locks() -> None:
    support = shipped(LAB)["support"]
    assert resolve(LAB, support, {"humor": 1})["helpfulness"] == 4
    with pytest.raises(AttributeProblem, match=r"'humor' got 2, but profile 'support' allows a number from 0 to 1"):
        resolve(LAB, support, {"humor": 2})
    with pytest.raises(AttributeProblem, match=r"'toxicity' got 1, but profile 'support' locks it at 0"):
        resolve(LAB, support, {"toxicity": 1})
    assert resolve(LAB, support, {"toxicity": 0})["toxicity"] == 0
    with pytest.raises(AttributeProblem, match=r"'helpfulness' got 3, but profile 'support' locks it at 4"):
        resolve(LAB, support, {"helpfulness": 3})


def test_what_is_not_steerable_stays() -> None:
    schema = AttributeSchema(
        name="s", attributes=(Attribute(name="safety", default=4, meaning="Safe.", better="higher", steerable=False),)
    )
    assert resolve(schema, None, {}) == {"safety": 4}
    with pytest.raises(AttributeProblem, match="not for callers"):
        resolve(schema, None, {"safety": 1})
    assert shipped(schema)["gaming"].attributes == {}


def test_an_unknown_profile_lists_them() -> None:
    with pytest.raises(
        ValueError, match=r"did you mean 'gaming'\?\); there are gaming, education, accessibility, support"
    ):
        find(shipped(LAB), "gamin")


def test_a_rule_outside_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"default 5 is outside 0\.\.4"):
        Profile(name="p", meaning="m", attributes={"humor": AttributeRule(default=5, low=0, high=4)})
