import pytest

from data.attributes import SHIPPED, Attribute, AttributeProblem, AttributeSchema, SchemaMismatch, shipped


def test_shipped_orders_are_the_papers() -> None:
    assert shipped("steerlm").names == (
        "quality",
        "toxicity",
        "humor",
        "creativity",
        "helpfulness",
        "correctness",
        "coherence",
        "complexity",
        "verbosity",
    )
    assert {(a.low, a.high) for a in shipped("steerlm_paper").attributes} == {(0, 9)}
    assert shipped("helpsteer").best() == {
        "helpfulness": 4,
        "correctness": 4,
        "coherence": 4,
        "complexity": 2,
        "verbosity": 2,
    }


@pytest.mark.parametrize(("value", "expected"), [(2.5, 2), (3.5, 4), (-7.0, 0), (99.0, 4), (1.49, 1)])
def test_rounding_clips_then_rounds_half_to_even(value: float, expected: int) -> None:
    assert shipped("lab")["humor"].rounded(value) == expected


def test_checked_names_the_field_and_the_range() -> None:
    schema = shipped("lab")
    assert schema.checked({"humor": 2, "helpfulness": 3.5}) == {"helpfulness": 3.5, "humor": 2.0}
    with pytest.raises(AttributeProblem, match=r"unknown attribute 'humour' \(did you mean 'humor'\?\)"):
        schema.checked({"humour": 1})
    for bad in (5, -0.1, float("nan"), float("inf"), True, "4", None, 10**400):
        with pytest.raises(AttributeProblem, match=r"'humor'.*0 to 4"):
            schema.checked({"humor": bad})


def test_different_schemas_do_not_meet_silently() -> None:
    with pytest.raises(SchemaMismatch, match=r"the run has attribute schema 'lab'.*the checkpoint has 'helpsteer'"):
        shipped("lab").require_same(shipped("helpsteer"), "the run", "the checkpoint")
    for schema in SHIPPED.values():
        assert AttributeSchema.model_validate_json(schema.model_dump_json()) == schema


def test_bad_schemas_are_refused() -> None:
    with pytest.raises(ValueError, match="low 4 must be below high 4"):
        Attribute(name="x", low=4, high=4, default=4, meaning="", better="higher")
    with pytest.raises(ValueError, match=r"default 9 is outside 0\.\.4"):
        Attribute(name="x", default=9, meaning="", better="higher")
    attribute = Attribute(name="x", default=0, meaning="", better="higher")
    with pytest.raises(ValueError, match="must be unique"):
        AttributeSchema(name="twice", attributes=(attribute, attribute))
