import numpy as np
import pytest

from data.attributes import shipped
from data.calibration import MAX_SCALE, MIN_PAIRS, Calibration, by_cuts, matched_to_people, spread_by_rank

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


def _spread(values: np.ndarray) -> Calibration:
    predicted_NA = np.full((len(values), 5), np.nan)
    predicted_NA[:, 2] = values
    return spread_by_rank(predicted_NA, SCHEMA)


def test_labels_by_rank_are_equally_common_whatever_the_values_are() -> None:
    values = np.random.default_rng(2).lognormal(3, 1, 5000)  # such as numbers of tokens
    spread = _spread(values)
    labels = [SCHEMA["humor"].rounded(spread({"humor": v})["humor"]) for v in values]
    assert all(abs(labels.count(label) - 1000) < 60 for label in range(5))
    order = np.argsort(values)
    assert (np.diff(spread.of("humor", values)[order]) >= 0).all()
    assert spread({"humor": -9.0})["humor"] == 0.0
    assert spread({"humor": 1e9})["humor"] == 4.0
    assert spread.changes("humor")
    assert not spread.changes("toxicity")


def test_equal_values_have_equal_labels() -> None:
    spread = _spread(np.repeat([1.0, 2.0, 3.0], [600, 300, 100]))
    low, middle, high = (spread({"humor": v})["humor"] for v in (1.0, 2.0, 3.0))
    assert low < middle < high
    assert low == pytest.approx(1.0, abs=0.15)  # the middle of the lowest 60 %


def test_without_some_attributes_their_values_stay() -> None:
    calibration = Calibration(scale={"humor": 2.0, "verbosity": 3.0}, points={"verbosity": ((0.0, 0.0), (9.0, 4.0))})
    assert calibration.without(["verbosity"]) == Calibration(scale={"humor": 2.0})


def test_cuts_become_points_that_rise_evenly() -> None:
    humor = SCHEMA["humor"].model_copy(update={"high": 2})
    by = Calibration(points={"humor": by_cuts((10, 30), humor)})
    assert [round(float(by.of("humor", v)), 2) for v in (-5, 0, 10, 20, 30, 40, 99)] == [0, 0, 0.5, 1, 1.5, 2, 2]
    assert [humor.rounded(by.of("humor", v)) for v in (9.9, 10, 29.9, 30)] == [0, 1, 1, 2]
    one = SCHEMA["humor"].model_copy(update={"high": 1})
    assert by_cuts((8,), one) == ((4.0, 0.0), (8.0, 0.5001), (12.0, 1.0))


def test_too_few_values_and_a_constant_stay_as_they_are() -> None:
    assert not _spread(np.arange(MIN_PAIRS - 1.0)).points
    assert not _spread(np.full(100, 2.0)).points


def test_a_spread_is_the_same_after_its_way_through_json() -> None:
    spread = _spread(np.arange(100.0))
    assert Calibration.model_validate_json(spread.model_dump_json()) == spread
