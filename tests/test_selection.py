"""Every filter drops what it is for, under its own name, and nothing is dropped that nobody asked to drop."""

from collections.abc import Sequence

import pytest

from data.attributes import AttributeProblem, Values, shipped
from data.selection import Sample, SelectionSettings, check_quantiles, decisions

SCHEMA = shipped("lab")
ASKED = {"helpfulness": 4.0, "humor": 2.0}


def sample(answer: str, predicted: Values = ASKED, question: str = "q", finish: str = "stop") -> Sample:
    return Sample(question, answer, finish, ASKED, predicted)


def reasons(samples: Sequence[Sample], **settings: object) -> list[str]:
    return list(decisions(lambda: iter(samples), SelectionSettings.model_validate(settings), SCHEMA))


def test_the_paper_keeps_everything() -> None:
    odd = [
        sample("no no no no no"),
        sample("I'm sorry, but I cannot help."),
        sample("no no no no no"),
        sample("far off", {"helpfulness": 0.0, "humor": 4.0}),
    ]
    assert reasons(odd) == [""] * 4


def test_what_is_no_answer_is_dropped_by_default() -> None:
    assert reasons([sample("cut", finish="length"), sample("", {})]) == ["unfinished", "unrated"]
    assert reasons([sample("cut", finish="length")], unfinished=True) == [""]


@pytest.mark.parametrize(
    ("bad", "reason", "settings"),
    [
        ("no no no no no", "loop", {"loops": False}),
        ("As an AI language model, I have no opinion.", "refusal", {"refusals": False}),
        ("two words", "too_short", {"min_words": 3}),
        ("these are more than four words", "too_long", {"max_words": 4}),
    ],
)
def test_each_filter_names_its_reason(bad: str, reason: str, settings: dict[str, object]) -> None:
    assert reasons([sample("three good words"), sample(bad)], **settings) == ["", reason]


def test_far_from_the_request() -> None:
    assert sample("a", {"helpfulness": 3.0, "humor": 0.0}).distance == 1.5
    assert reasons(
        [sample("a", {"helpfulness": 3.0, "humor": 1.0}), sample("b", {"helpfulness": 3.0, "humor": 0.0})],
        max_distance=1.0,
    ) == [
        "",
        "far_from_request",
    ]


def test_the_worst_by_quantile_at_the_worse_end() -> None:
    samples = [sample(str(i), {"helpfulness": float(i), "toxicity": float(i)}) for i in range(5)]
    assert reasons(samples, min_quantile={"helpfulness": 0.25}) == ["worst_helpfulness", "", "", "", ""]
    assert reasons(samples, min_quantile={"toxicity": 0.25}) == ["", "", "", "", "worst_toxicity"]
    with pytest.raises(ValueError, match="humor, of which neither end is better"):
        check_quantiles({"humor": 0.1}, SCHEMA)
    with pytest.raises(AttributeProblem):
        check_quantiles({"honesty": 0.1}, SCHEMA)


def test_duplicates_are_of_one_question_near_ones_of_any() -> None:
    text = "owls hunt mice at night and fly without a sound over the dark fields"
    samples = [
        sample(text),
        sample(f" {text}\n"),
        sample(text, question="other"),
        sample(text.replace("dark", "wide")),
        sample("bees make honey in a hive"),
    ]
    assert reasons(samples, duplicates=False) == ["", "duplicate", "", "", ""]
    assert reasons(samples, max_similarity=0.6) == ["", "near_duplicate", "near_duplicate", "near_duplicate", ""]
    assert reasons(samples, max_similarity=0.6) == reasons(samples, max_similarity=0.6), "the same in every run"


def test_bounds_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="max_words 2 is less than min_words 3"):
        SelectionSettings(min_words=3, max_words=2)
