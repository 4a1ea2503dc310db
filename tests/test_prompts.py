import pytest

from data.attributes import shipped
from data.conversation import Conversation, Message
from data.prompts import bootstrap_prompts, combinations, drawn, prompts_from, prompts_table, steering_prompts

SCHEMA = shipped("lab")
BEST = {"helpfulness": 4.0, "creativity": 0.0, "humor": 2.4, "toxicity": 0.0, "verbosity": 1.0}


def _row(i: int) -> Conversation:
    return Conversation("s", "", (Message("user", f"q{i}"), Message("assistant", "a"), Message("user", "more"), Message("assistant", "b")))


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
    assert [(c["helpfulness"], c["humor"]) for c in combinations(values, SCHEMA, "helpfulness", min_count=0)] == [(4, 2), (4, 4)]


def test_things_are_drawn_by_their_content_alone() -> None:
    things = [f"t{i}" for i in range(100)]
    some = drawn(things, 10, "a")
    assert len(set(some)) == 10
    assert some == drawn([*reversed(things), *things], 10, "a")
    assert some != drawn(things, 10, "b")
    assert some[:5] == drawn(things, 5, "a"), "a larger number continues"
    assert sorted(drawn(things, 1000, "a")) == sorted(things)


def test_a_plan_is_the_same_whatever_the_order_of_rows() -> None:
    rows = [_row(i) for i in range(30)]
    asked = combinations([BEST, BEST | {"humor": 4}], SCHEMA, "helpfulness")
    plan = bootstrap_prompts(rows, asked, 10, 3, seed=1, source="b")
    assert plan == bootstrap_prompts(reversed(rows), asked, 10, 3, seed=1, source="b")
    assert len(plan) == 30
    assert len({p.id for p in plan}) == 30
    assert len({p.seed for p in plan}) == 30
    assert all(p.messages[-1].role == "user" for p in plan)
    assert len({p.messages for p in plan}) == 10
    assert list(prompts_from(prompts_table(plan))) == plan


def test_steering_turns_one_dial_at_a_time() -> None:
    prompts = steering_prompts([[Message("user", "q")]], SCHEMA, SCHEMA.best(), 0, "e")
    assert len(prompts) == 1 + 5 * 5
    for p in prompts:
        changed = {n for n, v in p.requested.items() if v != SCHEMA.best()[n]}
        assert changed <= {p.group}


def test_steering_may_ask_for_one_dial_alone() -> None:
    prompts = steering_prompts([[Message("user", "q")]], SCHEMA, {}, 0, "e")
    assert all(set(p.requested) == {p.group} for p in prompts if p.group != "best")
    assert [p.requested for p in prompts if p.group == "best"] == [SCHEMA.best()]
