import itertools
from dataclasses import replace

import pytest

from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, Message
from data.prompts import (
    bootstrap_prompts,
    combinations,
    combined_settings,
    dialogue_prompts,
    drawn,
    drawn_questions,
    last_questions,
    prompts_from,
    prompts_table,
    steering_prompts,
)

SCHEMA = shipped("lab")
BEST = {"helpfulness": 4.0, "creativity": 0.0, "humor": 2.4, "toxicity": 0.0, "verbosity": 1.0}


def _row(i: int) -> Conversation:
    return Conversation(
        "s",
        "",
        (Message("user", f"q{i}"), Message("assistant", "a"), Message("user", "more"), Message("assistant", "b")),
    )


def test_combinations_are_those_seen_at_the_best_value() -> None:
    values = [BEST, BEST | {"humor": 2.6}, BEST | {"helpfulness": 3.2}, {"helpfulness": 4.0}]
    assert [c["humor"] for c in combinations(values, SCHEMA, "helpfulness")] == [2, 3]
    assert len(combinations(values, SCHEMA, "helpfulness", at_least=3)) == 3
    assert [c["humor"] for c in combinations([*values, BEST], SCHEMA, "helpfulness", min_count=2)] == [2]
    with pytest.raises(ValueError, match="no attribute combination with toxicity at 4 was seen 1 times"):
        combinations([], SCHEMA, "toxicity", at_least=4)
    lowest = combinations([BEST, BEST | {"toxicity": 3.0}], SCHEMA, "toxicity")
    assert {c["toxicity"] for c in lowest} == {0}


def test_min_count_0_asks_for_what_was_never_seen_together() -> None:
    values = [BEST, BEST | {"helpfulness": 1.0, "humor": 4.0}]
    assert [c["humor"] for c in combinations(values, SCHEMA, "helpfulness")] == [2]
    assert [(c["helpfulness"], c["humor"]) for c in combinations(values, SCHEMA, "helpfulness", min_count=0)] == [
        (4, 2),
        (4, 4),
    ]


def test_things_are_drawn_by_their_content_alone() -> None:
    things = [f"t{i}" for i in range(100)]
    some = drawn(things, 10, "a")
    assert len(set(some)) == 10
    assert some == drawn([*reversed(things), *things], 10, "a")
    assert some != drawn(things, 10, "b")
    assert some[:5] == drawn(things, 5, "a"), "a larger number continues"
    assert sorted(drawn(things, 1000, "a")) == sorted(things)


def test_rows_are_drawn_by_their_ids_whatever_predictor_rated_them() -> None:
    rows = [_row(i) for i in range(100)]
    rated = [replace(row, predicted=(BEST, BEST), predictor=f"{i:016x}") for i, row in enumerate(rows)]
    ids = [row.id for row in drawn(rows, 20, "a", name=lambda row: row.id)]
    assert ids == [row.id for row in drawn(rated, 20, "a", name=lambda row: row.id)]
    assert len(set(ids)) == 20


def test_a_plan_is_the_same_whatever_the_order_of_rows() -> None:
    rows = [_row(i) for i in range(30)]
    asked = combinations([BEST, BEST | {"humor": 4}], SCHEMA, "helpfulness")
    picked = drawn_questions(last_questions(rows), 10, seed=1)
    plan = bootstrap_prompts(picked, asked, 3, seed=1, source="b")
    backwards = drawn_questions(last_questions(reversed(rows)), 10, seed=1)
    assert plan == bootstrap_prompts(backwards, asked, 3, seed=1, source="b")
    parts = [drawn_questions(last_questions(rows[first::3]), 10, seed=1) for first in range(3)]
    assert picked == drawn_questions(itertools.chain(*parts), 10, seed=1), "drawn from what was drawn from parts"
    assert len(plan) == 30
    assert len({p.id for p in plan}) == 30
    assert len({p.seed for p in plan}) == 30
    assert all(p.messages[-1].role == "user" for p in plan)
    assert len({p.messages for p in plan}) == 10
    assert list(prompts_from(prompts_table(plan))) == plan


def test_steering_varies_one_attribute_at_a_time() -> None:
    prompts = steering_prompts([[Message("user", "q")]], SCHEMA, SCHEMA.best(), 0, "e")
    assert len(prompts) == 1 + 5 * 5
    for p in prompts:
        changed = {n for n, v in p.requested.items() if v != SCHEMA.best()[n]}
        assert changed <= {p.group}


def test_steering_may_request_one_attribute_alone() -> None:
    prompts = steering_prompts([[Message("user", "q")]], SCHEMA, {}, 0, "e")
    assert all(set(p.requested) == {p.group} for p in prompts if p.group != "best")
    assert [p.requested for p in prompts if p.group == "best"] == [SCHEMA.best()]


def test_combined_settings_vary_all_attributes_and_are_the_same_for_a_seed() -> None:
    some = combined_settings(SCHEMA, SCHEMA.best(), 6, seed=0)
    assert len({tuple(values.items()) for values in some}) == 6
    assert all(tuple(values) == SCHEMA.names and SCHEMA.checked(values) for values in some)
    assert some == combined_settings(SCHEMA, {}, 6, seed=0), (
        "all attributes are steerable, so nothing is left of the others"
    )
    assert some != combined_settings(SCHEMA, SCHEMA.best(), 6, seed=1)
    assert some == combined_settings(SCHEMA, SCHEMA.best(), 9, seed=0)[:6]


def test_no_more_combinations_than_there_are() -> None:
    small = [a.model_copy(update={"high": 1, "default": 0}) for a in SCHEMA.attributes[:2]]
    two = AttributeSchema(name="two", attributes=tuple(small))
    assert len(combined_settings(two, {}, 99, seed=0)) == 4
    assert combined_settings(AttributeSchema(name="one", attributes=two.attributes[:1]), {}, 99, seed=0) == []
    fixed = AttributeSchema(
        name="fixed", attributes=(*two.attributes, SCHEMA["toxicity"].model_copy(update={"steerable": False}))
    )
    assert {values["toxicity"] for values in combined_settings(fixed, fixed.best(), 99, seed=0)} == {0}
    assert all("toxicity" not in values for values in combined_settings(fixed, {}, 99, seed=0))


def test_a_dialogue_goes_on_with_the_answers_that_were_given() -> None:
    questions = [[Message("user", f"q{i}")] for i in range(3)]
    prompts = steering_prompts(questions, SCHEMA, SCHEMA.best(), 0, "e")
    answers = [
        Conversation(
            "e",
            "",
            (*p.messages, Message("assistant", f"{p.group} {p.requested.get(p.group)}")),
            requested=(p.requested,),
            group=p.group,
        )
        for p in prompts
    ]
    further = dialogue_prompts(answers, questions, SCHEMA, SCHEMA.best(), 2, 0, "e")
    assert len(further) == len({p.id for p in further}) == 2 * 5 * 2
    humor = [p for p in further if p.group == "dialogue/humor"]
    assert [([m.content for m in p.messages], p.requested["humor"]) for p in humor] == [
        (["q0", "humor 0", "q1"], 4),
        (["q0", "humor 4", "q1"], 0),
        (["q1", "humor 0", "q2"], 4),
        (["q1", "humor 4", "q2"], 0),
    ]
    assert all({n for n, v in p.requested.items() if v != SCHEMA.best()[n]} <= {"humor"} for p in humor)
    assert dialogue_prompts(answers, questions, SCHEMA, {}, 0, 0, "e") == []
    assert len(dialogue_prompts(answers, questions, SCHEMA, {}, 99, 0, "e")) == 3 * 5 * 2
    alone = dialogue_prompts(answers, questions[:1], SCHEMA, {}, 1, 0, "e")
    assert [m.content for m in alone[0].messages][::2] == ["q0", "q0"], "there is no other question"
