import math

import numpy as np
import pytest

from data.measures import collinearity, errors, pairwise_accuracy, reliability, share_interval, spearman, steering


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


def test_reliability_by_hand() -> None:
    bins = reliability([0, 1, 2, 3, math.nan], [1, 3, 2, 2, 4], num_bins=2)
    assert [(b["n"], b["predicted"], b["human"]) for b in bins] == [(2, 0.5, 2.0), (2, 2.5, 2.0)]
    assert [b["se"] for b in bins] == [1.0, 0.0]  # standard deviation sqrt(2) over sqrt(2) answers


def test_reliability_has_deciles_of_equal_size_and_never_splits_a_tie() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=1000)
    assert [b["n"] for b in reliability(predicted, predicted)] == [100] * 10
    assert [b["n"] for b in reliability(np.ones(7), np.arange(7.0))] == [7]
    assert sorted(b["predicted"] for b in reliability([1.0] * 90 + [2.0] * 10, np.zeros(100))) == [1.0, 2.0]
    assert reliability([], []) == []
    assert math.isnan(reliability([1.0], [2.0])[0]["se"])


def test_collinearity_uses_all_lines_that_have_both() -> None:
    nan = math.nan
    columns_NA = np.array([[0, 3, nan, 1], [1, 2, nan, 1], [2, 1, 5, 1], [3, nan, 6, 1], [nan, 0, 7, 1]], float)
    r_AA, n_AA = collinearity(columns_NA)
    assert n_AA.tolist() == [[4, 3, 2, 4], [3, 4, 2, 4], [2, 2, 3, 3], [4, 4, 3, 5]]
    assert r_AA[0, 1] == r_AA[1, 0] == pytest.approx(-1)
    assert np.isnan(r_AA[0, 2])  # two lines have no rank correlation
    assert np.isnan(r_AA[:, 3]).all()  # neither has a constant column
    assert collinearity(np.zeros((0, 2)))[1].tolist() == [[0, 0], [0, 0]]


def test_pairwise_accuracy_counts_a_tie_half_and_leaves_out_what_has_no_score() -> None:
    found = pairwise_accuracy([2, 1, 1, math.nan], [1, 2, 1, 0])
    assert (found["n"], found["ties"], found["accuracy"]) == (3, 1, 0.5)
    assert 0 < found["low"] < 0.5 < found["high"] < 1
    assert pairwise_accuracy([], []) == {"n": 0, "ties": 0}


def test_the_interval_of_a_share_is_wilsons() -> None:
    # 8 of 10: 0.4902 to 0.9433 in Agresti and Coull's tables.
    assert share_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = share_interval(1.0, 50)
    assert 0.9 < low < high <= 1.0
