import math

import numpy as np
import pytest
import scipy.stats

from data.measures import (
    agreement,
    collinearity,
    errors,
    mean_bands,
    pairwise_accuracy,
    partial_spearman,
    reliability,
    share_interval,
    slope,
    spearman,
    spearman_ceiling,
    steering,
    weighted_accuracy,
)


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
    assert row["slope"] == 0.5
    assert row["reached"] == [1.0, 3.0]
    down = steering([0, 1, 2], [2, 1, 0])
    assert (down["monotonic"], down["slope"], down["reached"]) == (False, -1.0, [0.0, 2.0])
    assert steering([math.nan], [1.0])["reached"] == []


def test_slope_is_points_per_point_over_pairs_that_have_both() -> None:
    assert slope([0, 1, 2, math.nan, 3], [1, 3, 5, 99, math.nan]) == 2.0
    assert math.isnan(slope([1, 1], [1, 2]))
    assert math.isnan(slope([1], [1]))


def test_ties_in_the_truth_bound_what_any_judge_can_reach() -> None:
    truth = [0, 0, 0, 1]
    assert spearman_ceiling(truth) == pytest.approx(spearman(truth, [1, 2, 3, 4]))
    assert spearman_ceiling([3, 1, 2]) == pytest.approx(1)
    assert math.isnan(spearman_ceiling([1, 1, 1, math.nan]))


def test_what_was_asked_explains_a_correlation_away_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, 3, 600)
    x, y = given**2 + rng.normal(0, 0.1, 600), (given - 1.0) ** 2 + rng.normal(0, 0.1, 600)
    names = [str(g) for g in given]
    assert spearman(given, x) > 0.9
    assert abs(partial_spearman(x, y, names)) < 0.1, "both follow what was asked, in shapes of their own"
    assert partial_spearman(x, x + y, ["all the same"] * 600) == pytest.approx(spearman(x, x + y))
    # Within a and within b the larger x has the smaller y; all in all larger goes with larger.
    assert partial_spearman([1, 2, 11, 12], [2, 1, 12, 11], ["a", "a", "b", "b"]) == pytest.approx(-1)
    assert math.isnan(partial_spearman([1, 2, 3], [3, 2, 1], ["a", "b", "c"])), "no two were asked the same"
    assert math.isnan(partial_spearman([1, 2, math.nan], [3, 2, 1], ["a", "a", "a"]))


def _answers(
    spread_of_questions: float, spread_of_answers: float, num_questions: int = 40
) -> tuple[list[float], list[float], list[str]]:
    """Ten answers to each question at 0, ten at 4."""
    rng = np.random.default_rng(1)
    requested, measured, questions = [], [], []
    for number in range(num_questions):
        level = rng.normal(0, spread_of_questions)
        for asked in (0.0, 4.0):
            for _ in range(10):
                requested.append(asked)
                measured.append(asked + level + rng.normal(0, spread_of_answers))
                questions.append(f"q{number}")
    return requested, measured, questions


def test_bands_are_those_of_means_over_other_questions() -> None:
    """Answers to one question are alike, so that 400 of them say no more than the 40 questions do."""
    requested, measured, questions = _answers(1.0, 0.1)
    low, high = mean_bands(requested, measured, questions, 2000, seed=0)
    means = steering(requested, measured)["measured"]
    assert [a < m < b for a, m, b in zip(low, means, high, strict=True)] == [True, True]
    per_question = np.array(measured).reshape(40, 2, 10)[:, 0].mean(axis=1)
    expected = 2 * 1.96 * per_question.std() / math.sqrt(40)
    assert high[0] - low[0] == pytest.approx(expected, rel=0.1)
    single = [f"{i}" for i in range(len(questions))]
    narrow = mean_bands(requested, measured, single, 2000, seed=0)
    assert narrow[1][0] - narrow[0][0] < 0.5 * expected, "drawn one by one, the answers pretend to know more"


def test_bands_are_the_same_for_the_same_seed_and_any_order() -> None:
    requested, measured, questions = _answers(1.0, 1.0)
    bands = mean_bands(requested, measured, questions, 500, seed=3)
    assert bands == mean_bands(requested, measured, questions, 500, seed=3)
    assert bands == mean_bands(requested[::-1], measured[::-1], questions[::-1], 500, seed=3)
    assert bands != mean_bands(requested, measured, questions, 500, seed=4)


def test_one_question_has_no_band() -> None:
    low, high = mean_bands([0, 0, 4, 4], [1, 2, 3, math.nan], ["a", "b", "a", "b"], 100, seed=0)
    assert (low[0], high[0]) == (1.0, 2.0)
    assert math.isnan(low[1])
    assert math.isnan(high[1])
    assert mean_bands([math.nan], [1.0], ["a"], 100, seed=0) == ([], [])


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
    assert weighted_accuracy(parts[:1], [7]) == pytest.approx(
        {name: parts[0][name] for name in ("accuracy", "low", "high")}
    )
