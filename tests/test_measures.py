import math

import numpy as np

from data.measures import errors, spearman, steering


def test_spearman_ignores_nan_and_refuses_what_has_no_rank() -> None:
    assert spearman([1, 2, 3, math.nan], [10, 20, 30, 5]) == 1.0
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1, 2], [1, 2]))


def test_errors_by_hand() -> None:
    found = errors([0, 1, 2, math.nan], [0, 2, 4, 9])
    assert found["n"] == 3
    assert found["mae"] == 1.0
    assert np.isclose(found["rmse"], math.sqrt(5 / 3))
    assert np.isclose(found["pearson"], 1.0)
    assert errors([math.nan], [1.0]) == {"n": 0}


def test_steering_counts_single_answers_not_means() -> None:
    row = steering([0, 0, 4, 4], [0, 2, 1, 5])
    assert row["requested"] == [0.0, 4.0]
    assert row["measured"] == [1.0, 3.0]
    assert row["monotonic"] is True
    assert 0 < row["spearman"] < 1
    assert steering([0, 1, 2], [2, 1, 0])["monotonic"] is False
