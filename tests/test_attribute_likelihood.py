"""Labels have the part of a Beta distribution that rounds to them, also at the ends; weights by hand."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from data.attribute_likelihood import LEAST, divergence, effective, log_label, log_labels, log_target
from data.attributes import shipped

SCHEMA = shipped("lab")
HUMOR = SCHEMA["humor"]


def test_the_probability_of_a_label_is_the_part_that_rounds_to_it() -> None:
    value = 2.6
    for label, (low, high) in enumerate([(0, 0.125), (0.125, 0.375), (0.375, 0.625), (0.625, 0.875), (0.875, 1)]):
        expected, _ = quad(beta(24 * 0.65, 24 * 0.35).pdf, low, high)
        assert math.exp(log_label(HUMOR, label, value)) == pytest.approx(expected, rel=1e-6)
    paper = shipped("steerlm_paper")["humor"]
    for value in (-3.0, 0.0, 0.3, 4.5, 9.0, 12.0):
        assert sum(math.exp(log_label(paper, label, value)) for label in range(10)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-9, 4.0, 5.5])
def test_at_the_ends_of_the_scale_every_label_keeps_a_finite_logarithm(value: float) -> None:
    found = [log_label(HUMOR, label, value) for label in range(5)]
    assert all(LEAST <= logarithm < 0 for logarithm in found)
    order = found if value > 2 else found[::-1]
    assert order == sorted(order), "the farther a label is from the value, the less likely it is"
    assert len(set(found)) == 5, "and none is lost to rounding"


def test_the_two_ends_are_mirror_images() -> None:
    for label in range(5):
        assert log_label(HUMOR, label, 0.5) == pytest.approx(log_label(HUMOR, 4 - label, 3.5), rel=1e-9)


def test_requested_labels_count_together_and_others_not_at_all() -> None:
    predicted = {"humor": 3.2, "toxicity": 0.4, "verbosity": 1.0}
    both = log_labels(SCHEMA, {"humor": 4, "toxicity": 0}, predicted)
    assert both == pytest.approx(log_label(HUMOR, 4, 3.2) + log_label(SCHEMA["toxicity"], 0, 0.4))
    assert math.isnan(log_labels(SCHEMA, {"humor": 4, "helpfulness": 4}, predicted))


def test_weights_of_a_prompts_answers_by_hand() -> None:
    """exp of -1 - 2 + 2.5, of -2 - 1 + 3 and of 0 - 4 + 3 are .6065, 1 and .3679; together 1.9744."""
    found = log_target([-1, -2, 0], [-2, -1, -4], [-2.5, -3, -3])
    assert np.exp(found) == pytest.approx([0.30719, 0.50648, 0.18633], abs=1e-5)
    uniform = np.log(np.full(3, 1 / 3))
    expected = 0.30719 * math.log(0.92158) + 0.50648 * math.log(1.51944) + 0.18633 * math.log(0.55898)
    assert divergence(found, uniform) == pytest.approx(expected, abs=1e-4)
    assert divergence(found, found) == 0
    assert effective(uniform) == pytest.approx(3)
    assert effective(log_target([0, -900], [0, 0], [0, 0])) == 1
