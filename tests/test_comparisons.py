"""What verdicts come to, checked by hand: both orders, ties, what has no verdict, the place, percent of a reference."""

import pytest

from data.comparisons import (
    by,
    counters,
    games,
    latest,
    mean_rating,
    models_of,
    pairwise_comparisons,
    percent,
    position_bias,
    problems,
    rated,
)
from data.measures import share_interval
from data.verdicts import Verdict, Winner

MODELS = ["ours", "theirs"]


def both(
    question: int, straight: Winner | None, swapped: Winner | None, category: str = "c", turn: int = 1
) -> list[Verdict]:
    """The verdict with ours in first place, and with ours in second."""
    about = ("pair", question, category, turn)
    return [
        Verdict(*about, models, "j", winner=winner, problem="" if winner else "unparsable")
        for models, winner in ((("ours", "theirs"), straight), (("theirs", "ours"), swapped))
    ]


def single(model: str, question: int, rating: float | None, category: str = "c", turn: int = 1) -> Verdict:
    return Verdict(
        "single", question, category, turn, (model,), "j", rating=rating, problem="" if rating else "unparsable"
    )


# Ours wins 1 in both orders, loses 2, ties 3; 4 goes to the first place both times, 5 is a win and a tie; 6 lacks an
# order.
VERDICTS = [
    *both(1, "first", "second", "math"),
    *both(2, "second", "first", "math"),
    *both(3, "tie", "tie"),
    *both(4, "first", "first"),
    *both(5, "first", "tie"),
    *both(6, "first", None),
]


def test_a_win_holds_in_both_orders() -> None:
    found = pairwise_comparisons(VERDICTS, MODELS)
    assert [d.score for d in found] == [1.0, 0.0, 0.5, 0.5, 0.5, None]
    metrics = counters(found)
    assert (metrics["win"], metrics["tie"], metrics["loss"], metrics["without_verdict"], metrics["win_rate"]) == (
        1,
        3,
        1,
        1,
        0.5,
    )
    assert metrics["interval"] == [round(v, 4) for v in share_interval(0.5, 5)]
    assert by("category", found)["math"] | {"interval": None} == {
        "win": 1,
        "tie": 0,
        "loss": 1,
        "without_verdict": 0,
        "win_rate": 0.5,
        "interval": None,
    }


def test_the_side_is_that_of_the_model_named_first() -> None:
    assert [d.score for d in pairwise_comparisons(VERDICTS, ["theirs", "ours"])] == [0.0, 1.0, 0.5, 0.5, 0.5, None]
    assert [(g.one, g.other, g.score) for g in games(pairwise_comparisons(VERDICTS[:2], ["theirs", "ours"]))] == [
        ("theirs", "ours", 0.0)
    ]


def test_two_turns_of_a_question_are_one_question_for_the_interval() -> None:
    one = counters(pairwise_comparisons(both(1, "first", "second"), MODELS))
    two = counters(pairwise_comparisons([*both(1, "first", "second"), *both(1, "first", "second", turn=2)], MODELS))
    assert (one["win"], two["win"]) == (1, 2)
    assert one["interval"] == two["interval"]


def test_the_judge_s_position_bias() -> None:
    found = position_bias(pairwise_comparisons(VERDICTS, MODELS))
    assert (found["comparisons"], found["changed"], found["reversed"]) == (5, 0.4, 0.2)
    # decided: 1 first+second, 2 second+first, 4 first+first, 5 first, 6 first
    assert (found["decided"], found["first_place"]) == (8, 0.75)
    always_first = position_bias(pairwise_comparisons([v for q in range(4) for v in both(q, "first", "first")], MODELS))
    assert (always_first["reversed"], always_first["first_place"]) == (1.0, 1.0)
    nothing = position_bias(pairwise_comparisons(both(1, None, None), MODELS))
    assert (nothing["comparisons"], nothing["changed"], nothing["first_place"]) == (0, None, None)


def test_nothing_judged_has_no_rate() -> None:
    metrics = counters(pairwise_comparisons(both(1, None, "first"), MODELS))
    assert (metrics["win_rate"], metrics["interval"], metrics["without_verdict"]) == (None, None, 1)


def test_percent_of_the_reference_is_over_answers_that_both_have_a_rating_of() -> None:
    verdicts = [
        single("ours", 1, 8),
        single("theirs", 1, 10),
        single("ours", 2, 9, "math"),
        single("theirs", 2, 5, "math"),
    ]
    verdicts += [single("ours", 3, 10), single("theirs", 3, None)]
    ours, theirs = rated(verdicts, "ours"), rated(verdicts, "theirs")
    found = percent(ours, theirs, 100, 0)
    assert (found["n"], found["percent"]) == (2, 113.33)
    assert found["categories"] == {"c": 80.0, "math": 180.0}
    assert found["interval"] == [80.0, 180.0], "of two questions the resamples know both extremes"
    assert percent(ours, [], 100, 0)["percent"] is None
    assert mean_rating(ours, 100, 0) | {"interval": None} == {
        "n": 3,
        "mean": 9.0,
        "interval": None,
        "turns": {"1": 9.0},
        "categories": {"c": 9.0, "math": 9.0},
    }


def test_what_has_no_verdict_is_counted_by_its_reason() -> None:
    verdicts = [
        single("ours", 1, 8),
        single("ours", 2, None),
        Verdict("single", 3, "c", 1, ("ours",), "j", problem="400 too_long"),
    ]
    assert problems(verdicts) == {"judged": 3, "verdicts": 1, "unparsable": 1, "errors": {"400 too_long": 1}}


def test_of_a_match_that_is_stored_twice_the_last_counts() -> None:
    found, repeated = latest([single("ours", 1, 2), single("theirs", 1, 3), single("ours", 1, 9)])
    assert repeated == 1
    assert [v.rating for v in found] == [9, 3]
    assert models_of(found) == ["ours", "theirs"]


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_file_does_not_matter(order: int) -> None:
    assert sorted(d.score for d in pairwise_comparisons(VERDICTS[:10][::order], MODELS) if d.score is not None) == [
        0.0,
        0.5,
        0.5,
        0.5,
        1.0,
    ]
