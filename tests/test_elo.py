"""Ratings from games: figures that follow by hand or from known strengths, and intervals that a seed repeats."""

import math
import random

import numpy as np
import pytest

from data.elo import Game, bradley_terry, elo, ratings, resampled


def played(wins: int, ties: int, losses: int) -> list[Game]:
    scores = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return [Game(i, "ours", "theirs", score) for i, score in enumerate(scores)]


def test_one_game_of_elo_by_hand() -> None:
    found = elo(np.array([[0, 1, 1.0], [0, 1, 1.0]]), 2, np.array([[0, 1]]))[0]
    first = 32 * 0.5
    expected = 1 / (1 + 10 ** (-2 * first / 400))
    assert found == pytest.approx([1000 + first + 32 * (1 - expected), 1000 - first - 32 * (1 - expected)])


def test_bradley_terry_of_two_is_the_logarithm_of_the_odds() -> None:
    found = bradley_terry(np.array([[[0, 60.0], [20.0, 0]]]))[0]
    assert found[0] - found[1] == pytest.approx(400 * math.log10(60.5 / 20.5))
    assert found.mean() == pytest.approx(1000)


def test_bradley_terry_finds_known_strengths() -> None:
    strengths = {"a": 4.0, "b": 2.0, "c": 1.0}
    draw = random.Random(3)
    games = [
        Game(i, one, other, float(draw.random() < strengths[one] / (strengths[one] + strengths[other])))
        for i in range(3000)
        for one, other in (("a", "b"), ("b", "c"), ("a", "c"))
    ]
    found = ratings(games, 50, 0)
    assert list(found) == ["a", "b", "c"], "best first"
    for better, worse in (("a", "b"), ("b", "c")):
        gap = found[better]["bradley_terry"] - found[worse]["bradley_terry"]
        assert gap == pytest.approx(400 * math.log10(2), abs=20)
        assert found[better]["elo"] > found[worse]["elo"]


def test_who_won_everything_has_a_finite_rating() -> None:
    found = ratings(played(20, 0, 0), 50, 0)
    assert 1000 < found["ours"]["bradley_terry"] < 2000
    assert all(
        math.isfinite(v)
        for row in found.values()
        for v in (row["elo"], *row["elo_interval"], *row["bradley_terry_interval"])
    )


def test_the_interval_holds_the_rating_and_a_seed_repeats_it() -> None:
    games = played(30, 30, 20)
    found = ratings(games, 300, 7)
    for row in found.values():
        for kind in ("elo", "bradley_terry"):
            low, high = row[f"{kind}_interval"]
            assert low < row[kind] < high
    assert found == ratings(games, 300, 7)
    assert found != ratings(games, 300, 8)
    narrow = ratings([Game(f"{g.question}/{n}", g.one, g.other, g.score) for n in range(16) for g in games], 300, 7)
    width, wide = (np.ptp(r["ours"]["bradley_terry_interval"]) for r in (narrow, found))
    assert width < wide / 2, "sixteen times the questions, a quarter of the width"


def test_games_of_one_question_are_drawn_together() -> None:
    drawn = resampled(["a", "b", "b", "c"], 200, np.random.default_rng(0))
    assert all(np.sum(d == 1) == np.sum(d == 2) for d in drawn)
    assert {len(d) for d in drawn} >= {3, 4, 5}
    assert ratings([Game("only", "ours", "theirs", s) for s in (1, 1, 0)], 20, 0)["ours"]["bradley_terry_interval"][
        0
    ] == pytest.approx(ratings([Game("only", "ours", "theirs", s) for s in (1, 1, 0)], 20, 0)["ours"]["bradley_terry"])


def test_no_game_is_no_rating() -> None:
    assert ratings([], 20, 0) == {}
