import numpy as np
import pytest

from data.attributes import shipped
from data.calibration import MAX_SCALE, Calibration, matched_to_people

SCHEMA = shipped("lab")


def _matched(human: np.ndarray, predicted: np.ndarray) -> Calibration:
    """As if every answer were rated on humor alone, and predicted on all."""
    human_NA, predicted_NA = np.full((len(human), 5), np.nan), np.full((len(human), 5), 1.0)
    human_NA[:, 2], predicted_NA[:, 2] = human, predicted
    return matched_to_people(human_NA, predicted_NA, SCHEMA.names)


def test_predicted_values_get_the_mean_and_spread_of_the_human_ones() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 2000)
    human = np.clip(truth + rng.choice([-1, 0, 0, 1], 2000), 0, 4)
    narrow = 0.6 * truth + 0.9
    calibration = _matched(human, narrow)
    stretched = np.array([calibration({"humor": v})["humor"] for v in narrow])
    assert stretched.mean() == pytest.approx(human.mean(), abs=1e-3)
    assert stretched.std() == pytest.approx(human.std(), abs=1e-3)
    # What it is for: the ends of the scale become labels again.
    assert {SCHEMA["humor"].rounded(v) for v in narrow} == {1, 2, 3}
    assert {SCHEMA["humor"].rounded(v) for v in stretched} == {0, 1, 2, 3, 4}


def test_what_cannot_be_measured_stays_as_it_is() -> None:
    assert Calibration()({"humor": 1.5}) == {"humor": 1.5}
    few = _matched(np.arange(5), np.arange(5) / 2)
    assert few({"humor": 1.5, "toxicity": 2.0}) == {"humor": 1.5, "toxicity": 2.0}
    constant = _matched(np.arange(100) % 5, np.full(100, 0.1))
    assert constant({"humor": 0.1})["humor"] == pytest.approx(2.0)


def test_noise_is_not_stretched_without_bound_and_nothing_is_squeezed() -> None:
    rng = np.random.default_rng(1)
    human = rng.integers(0, 5, 500)
    assert _matched(human, 2 + 0.01 * rng.normal(size=500)).scale["humor"] == MAX_SCALE
    assert _matched(human, 9.0 * human).scale["humor"] == 1.0


def test_columns_are_calibrated_like_single_values() -> None:
    calibration = Calibration(scale={"humor": 2.0}, shift={"humor": -1.0})
    assert calibration.of("humor", np.array([1.0, np.nan, 2.0])).tolist()[::2] == [1.0, 3.0]
    assert calibration({"humor": 2.0, "toxicity": 1.0}) == {"humor": 3.0, "toxicity": 1.0}
    assert (calibration.changes("humor"), calibration.changes("toxicity")) == (True, False)
