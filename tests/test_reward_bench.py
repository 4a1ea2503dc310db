"""Section averages: subsets count with their pairs, mathematics as much as code."""

import pytest

from data.measures import pairwise_accuracy
from data.reward_bench import CODE, SECTIONS, sections


def _subset(right: int, n: int) -> dict[str, float]:
    return pairwise_accuracy([1] * n, [0] * right + [2] * (n - right))


def test_a_section_is_the_mean_over_its_pairs() -> None:
    found = sections(
        {"alpacaeval-easy": _subset(90, 100), "mt-bench-easy": _subset(7, 28), "somebody's": _subset(1, 5)}
    )
    assert found.keys() == {"chat"}
    assert found["chat"]["accuracy"] == pytest.approx(97 / 128)
    assert found["chat"]["missing"] == ["alpacaeval-length", "alpacaeval-hard", "mt-bench-med"]
    assert 0 < found["chat"]["low"] < 97 / 128 < found["chat"]["high"] < 1


def test_mathematics_counts_as_much_as_all_code() -> None:
    found = sections({"math-prm": _subset(447, 447)} | {name: _subset(82, 164) for name in CODE})
    assert found["reasoning"]["accuracy"] == pytest.approx(0.75)
    assert found["reasoning"]["missing"] == []
    assert sections({"math-prm": _subset(1, 2)})["reasoning"]["accuracy"] == 0.5


def test_the_score_is_the_mean_over_sections_and_needs_all_four() -> None:
    one_each = {names[0]: _subset(right, 10) for names, right in zip(SECTIONS.values(), (10, 5, 5, 0), strict=True)}
    found = sections(one_each)
    assert found["score"]["accuracy"] == pytest.approx(0.5)
    assert found["score"]["low"] < 0.5 < found["score"]["high"]
    assert len(found["score"]["missing"]) == sum(map(len, SECTIONS.values())) - 4
    assert "score" not in sections({name: one_each[name] for name in list(one_each)[:3]})


def test_a_subset_whose_pairs_were_never_scored_is_missing() -> None:
    assert sections({"math-prm": {"n": 0, "ties": 0}}) == {}
