import math

import numpy as np
import pytest
import scipy.stats

from data.measures import agreement, collinearity, errors, pairwise_accuracy, reliability, share_interval, spearman, steering, weighted_accuracy


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


def test_agreement_has_both_correlations_with_intervals() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = x + rng.normal(size=400)
    found = agreement([*x, np.nan], [*y, 1.0])
    assert found["n"] == 400
    low, high = scipy.stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found["pearson_low"], found["pearson_high"]) == pytest.approx((low, high), abs=1e-6)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found["spearman_low"] < found["spearman"] < found["spearman_high"]
    # Ranks know less than values: their interval is the wider one at about the same correlation.
    assert found["spearman_high"] - found["spearman_low"] > found["pearson_high"] - found["pearson_low"]
    perfect = agreement([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert perfect["pearson_high"] == pytest.approx(1.0)
    for few in (agreement([1, 2, 3], [1, 3, 2]), agreement([1, 1, 1, 1], [1, 2, 3, 4]), agreement([], [])):
        assert np.isnan([few["pearson_low"], few["spearman_high"]]).all()


def test_an_average_of_accuracies_is_surer_than_its_parts() -> None:
    parts = [pairwise_accuracy([1] * 50, [0] * right + [2] * (50 - right)) for right in (30, 45)]
    even = weighted_accuracy(parts, [1, 1])
    assert even["accuracy"] == pytest.approx(0.75)
    assert even["high"] - even["low"] < min(p["high"] - p["low"] for p in parts)
    assert weighted_accuracy(parts, [1, 3])["accuracy"] == pytest.approx(0.825)
    assert weighted_accuracy(parts[:1], [7]) == pytest.approx({name: parts[0][name] for name in ("accuracy", "low", "high")})
