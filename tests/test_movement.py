"""From the lowest to the highest request, in standard deviations of the labels."""

import math

import numpy as np
import pytest

from data.movement import movement


def answers(num_questions: int, shift: float, noise: float = 0.0) -> tuple[list[float], list[float], list[str]]:
    """Three values of a scale for each question; the measured value rises by `shift` from end to end."""
    rng = np.random.default_rng(1)
    cells = [(float(v), f"q{q}") for q in range(num_questions) for v in (0, 2, 4)]
    requested, questions = [v for v, _ in cells], [q for _, q in cells]
    measured = [10 + int(q[1:]) + shift * v / 4 + noise * rng.normal() for v, q in cells]
    return requested, measured, questions


def test_the_difference_of_the_ends_in_deviations() -> None:
    found = movement(*answers(20, 3.0), deviation=2.0, num_resamples=200, seed=0)
    assert found
    assert (found.requested, found.questions, found.deviation) == ((0, 4), 20, 2.0)
    assert (found.moved, found.low, found.high) == (1.5, 1.5, 1.5), "questions differ, what a question moves does not"
    assert found.measured == (19.5, 22.5)
    assert found.ratio == round(22.5 / 19.5, 4)
    assert found.ratio_low
    assert found.ratio_high
    assert found.ratio_low < found.ratio < found.ratio_high


def test_noise_gives_the_interval_a_width_and_no_order_matters() -> None:
    requested, measured, questions = answers(40, 0.0, noise=1.0)
    found = movement(requested, measured, questions, 1.0, 500, 0)
    assert found
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high, "nothing moved"
    assert 0.4 < found.high - found.low < 1.5, "two standard errors of 40 differences with a deviation of 1.4"
    order = np.random.default_rng(2).permutation(len(requested))
    again = [[column[i] for i in order] for column in (requested, measured, questions)]
    mixed = movement(again[0], again[1], again[2], 1.0, 500, 0)  # type: ignore[arg-type]
    assert mixed == found


def test_what_is_unknown_is_none() -> None:
    requested, measured, questions = answers(3, 1.0)
    unknown = movement(requested, measured, questions, None, 100, 0)
    assert unknown
    assert (unknown.deviation, unknown.moved, unknown.low) == (None, None, None)
    assert unknown.ratio
    assert unknown.ratio > 1
    below = movement(requested, [m - 100 for m in measured], questions, 1.0, 100, 0)
    assert below
    assert below.moved == 1.0
    assert below.ratio is None, "a ratio of negative numbers says nothing"
    assert movement(requested, [math.nan] * len(requested), questions, 1.0, 100, 0) is None
    assert movement(requested[:3], measured[:3], questions[:3], 1.0, 100, 0) is None, "one question has no interval"
    assert movement([2.0] * 9, measured, questions, 1.0, 100, 0) is None


@pytest.mark.parametrize("missing", [0, 2])
def test_only_questions_answered_at_both_ends_count(missing: int) -> None:
    requested, measured, questions = answers(5, 2.0)
    measured[missing] = math.nan
    found = movement(requested, measured, questions, 1.0, 100, 0)
    assert found
    assert found.questions == 4
    assert found.moved == 2.0
