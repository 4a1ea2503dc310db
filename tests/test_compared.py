"""Two models' answers side by side: who is preferred, and whether length is all there is to it."""

import math

from data.compared import ComparedPair, compared_pair, shares, spread_evenly

WEIGHTS = {"quality": 0.5, "toxicity": -0.5, "verbosity": 0.0}


def pair(number: int, ours: float, theirs: float, words: int = 1) -> ComparedPair:
    sides = [("word " * words, {"quality": ours, "toxicity": 1.0}), ("word", {"quality": theirs, "toxicity": 1.0})]
    return compared_pair(str(number), f"q{number}", sides, WEIGHTS)


def test_the_share_of_preferred_answers_has_an_interval() -> None:
    pairs = [pair(n, 3.0, 2.0) for n in range(6)] + [pair(n, 1.0, 2.0, words=2) for n in range(6, 8)]
    found = shares(pairs, ["quality", "toxicity", "verbosity"])
    preferred = found["preferred"]
    assert (preferred.n, preferred.ties, preferred.accuracy) == (8, 0, 0.75)
    assert preferred.low < 0.75 < preferred.high
    assert (found["longer"].ties, found["longer"].accuracy) == (6, 0.625)
    assert found["each_attribute"]["toxicity"].ties == 8
    assert found["each_attribute"]["verbosity"].n == 0, "nobody rated it"
    assert found["means"] == {
        "policy": {"quality": 2.5, "toxicity": 1.0, "words": 1.25},
        "base": {"quality": 2.0, "toxicity": 1.0, "words": 1.0},
    }
    assert found["unscored"] == 0


def test_an_unrated_answer_counts_nowhere_but_is_counted() -> None:
    unrated = compared_pair("8", "q", [("", {}), ("a", {"quality": 2.0, "toxicity": 0.0})], WEIGHTS)
    assert unrated.policy_score is None
    half = compared_pair("9", "q", [("b", {"quality": math.nan, "toxicity": 0.0}), ("a", {})], WEIGHTS)
    assert half.policy_score is None
    found = shares([pair(0, 3.0, 2.0), unrated], ["quality"])
    assert (found["preferred"].n, found["unscored"]) == (1, 1)
    nothing = shares([unrated], ["quality"])
    assert (nothing["preferred"].n, nothing["unscored"], nothing["means"]) == (0, 1, {"policy": {}, "base": {}})


def test_what_is_shown_comes_evenly_from_the_whole_file() -> None:
    assert spread_evenly(range(80), 4) == [0, 20, 40, 60]
    assert spread_evenly([1, 2], 20) == [1, 2]
    assert spread_evenly(list(range(7)), 3) == [0, 2, 4]
