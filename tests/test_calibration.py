import numpy as np
import pytest

from data.attributes import shipped
from data.calibration import MAX_SCALE, Calibration, matched_to_people
from data.conversation import Conversation, Message

SCHEMA = shipped("lab")
TURN = (Message("user", "q"), Message("assistant", "a"))


def _rows(human: np.ndarray, predicted: np.ndarray) -> list[Conversation]:
    return [
        Conversation("s", "", TURN, human=({"humor": float(h)},), predicted=({"humor": float(p), "toxicity": 1.0},))
        for h, p in zip(human, predicted, strict=True)
    ]


def test_predicted_values_get_the_mean_and_spread_of_the_human_ones() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 2000)
    human = np.clip(truth + rng.choice([-1, 0, 0, 1], 2000), 0, 4)
    narrow = 0.6 * truth + 0.9
    calibration = matched_to_people(_rows(human, narrow), SCHEMA)
    stretched = np.array([calibration({"humor": v})["humor"] for v in narrow])
    assert stretched.mean() == pytest.approx(human.mean(), abs=1e-3)
    assert stretched.std() == pytest.approx(human.std(), abs=1e-3)
    # What it is for: the ends of the scale become labels again.
    assert {SCHEMA["humor"].rounded(v) for v in narrow} == {1, 2, 3}
    assert {SCHEMA["humor"].rounded(v) for v in stretched} == {0, 1, 2, 3, 4}


def test_what_cannot_be_measured_stays_as_it_is() -> None:
    assert Calibration()({"humor": 1.5}) == {"humor": 1.5}
    few = matched_to_people(_rows(np.arange(5), np.arange(5) / 2), SCHEMA)
    assert few({"humor": 1.5, "toxicity": 2.0}) == {"humor": 1.5, "toxicity": 2.0}
    constant = matched_to_people(_rows(np.arange(100) % 5, np.full(100, 1.0)), SCHEMA)
    assert constant({"humor": 1.0})["humor"] == pytest.approx(2.0)


def test_noise_is_not_stretched_without_bound_and_nothing_is_squeezed() -> None:
    rng = np.random.default_rng(1)
    human = rng.integers(0, 5, 500)
    assert matched_to_people(_rows(human, 2 + 0.01 * rng.normal(size=500)), SCHEMA).scale["humor"] == MAX_SCALE
    assert matched_to_people(_rows(human, 9.0 * human), SCHEMA).scale["humor"] == 1.0
