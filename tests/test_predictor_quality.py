"""The metrics, tables and figures of a predictor, on worlds whose answer is known and on empty ones."""

import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from data.attributes import shipped
from data.conversation import Conversation, Message
from data.lab import Lab, LabSettings
from data.quality_metrics import PairAccuracy
from data.ratings import Ratings, joined, ratings_of
from data.run_layout import as_json
from data.storage import Storage
from jobs.evaluation.predictor_pairs import StoredPairs, pair_metrics
from jobs.evaluation.predictor_quality import quality
from jobs.reporting.figures_training import draw_calibration, draw_collinearity
from jobs.reporting.sections_predictor import pair_lines, quality_lines
from jobs.reporting.tables import Table, as_text

SCHEMA = shipped("lab")
NAMES = SCHEMA.names


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(LabSettings(rated_share=1, num_rows=400))


def _predicted(lab: Lab, scale: float, buckets: int = 4) -> Ratings:
    """A predictor that knows the truth, but says it narrowed around 2."""
    rows = []
    for row in lab.rows():
        predicted = tuple(
            {name: 2 + scale * (value - 2) for name, value in values.items()} for values in lab.truth(row)
        )
        rows.append(Conversation(**{**vars(row), "predicted": predicted}))
    return ratings_of(rows, NAMES, buckets, lab.truth)


def test_a_predictor_is_compared_with_people_the_mean_length_and_the_truth(lab: Lab) -> None:
    rated = _predicted(lab, 1.0)
    metrics = as_json(quality(SCHEMA, rated, rated))
    assert metrics["answers"] == {"rated": len(rated), "held_out": len(rated), "unscored": 0}
    for row in metrics["attributes"].values():
        assert row["truth"]["predictor"]["mae"] == 0
        assert 0.3 < row["truth"]["one_rater"]["mae"] < 0.7
        # It knows the truth, so its error against people is theirs against the truth.
        assert (row["n"], row["mae"]) == (row["truth"]["one_rater"]["n"], row["truth"]["one_rater"]["mae"])
        length = row["baselines"]["length"]
        assert row["spearman"] > length["spearman"]
        assert length["lead"] == pytest.approx(row["spearman"] - length["spearman"], abs=2e-4)
        assert row["mae"] < row["baselines"]["mean"]["mae"]
        # 1.34 is the spread of values that are about even over 0..4.
        assert row["baselines"]["mean"]["rmse"] == pytest.approx(row["std_human"], abs=0.03)
        assert sum(b["n"] for b in row["reliability"]) == row["n"]
    assert metrics["collinearity"]["n"][NAMES.index("humor")][NAMES.index("verbosity")] == 0
    assert metrics["collinearity"]["spearman"][NAMES.index("humor")][NAMES.index("verbosity")] is None


def test_calibrated_metrics_stand_beside_the_raw_ones_where_they_differ(lab: Lab) -> None:
    narrow = _predicted(lab, 0.5)
    for row in as_json(quality(SCHEMA, narrow, narrow))["attributes"].values():
        assert row["std_predicted"] < 0.6 * row["std_human"]
        assert row["calibrated"]["std_predicted"] == pytest.approx(row["std_human"], abs=0.01)
        assert row["calibrated"]["mae"] < row["mae"]
        assert row["calibrated"]["spearman"] == row["spearman"]  # ranks do not change
    few = ratings_of(list(lab.rows())[:3], NAMES, 4)
    assert not any("calibrated" in row for row in as_json(quality(SCHEMA, few, few))["attributes"].values())


def test_unscored_answers_count_for_nobody(lab: Lab) -> None:
    whole = _predicted(lab, 1.0)
    predicted_NA = whole.predicted_NA.copy()
    predicted_NA[:100] = np.nan
    held_out = Ratings(whole.human_NA, predicted_NA, whole.truth_NA, whole.length_N, whole.bucket_N)
    metrics = as_json(quality(SCHEMA, whole, held_out))
    assert metrics["answers"]["unscored"] == 100
    row = metrics["attributes"]["helpfulness"]
    assert row["n"] == row["baselines"]["mean"]["n"] == row["truth"]["one_rater"]["n"] == len(whole) - 100


def _few(*values: tuple[float, float]) -> Ratings:
    """Answers by (human, predicted) helpfulness; everything else is unknown."""
    turns = (Message("user", "q"), Message("assistant", "a"))
    rows = [
        Conversation("s", "", turns, human=({"helpfulness": h},), predicted=({"helpfulness": p},)) for h, p in values
    ]
    return ratings_of(rows, NAMES, 0)


@pytest.mark.parametrize(
    "ratings",
    [
        joined([], len(NAMES)),
        _few((1, 2)),
        _few((1, 2), (2, 1)),
        _few(*[(3, 1.5)] * 30),
        _few((1, math.nan), (2, math.nan), (3, math.nan)),
    ],
    ids=["empty", "one", "two", "constant", "never scored"],
)
def test_too_little_to_say_anything_is_no_crash_and_no_nan(ratings: Ratings, tmp_path: Path) -> None:
    metrics = quality(SCHEMA, ratings, ratings)
    short = {name: as_json(row.without_bins()) for name, row in metrics.attributes.items()}
    text = json.dumps({"quality": as_json(metrics), "summary": short}, allow_nan=False)
    assert "NaN" not in text
    assert metrics.attributes["humor"].n == 0
    assert metrics.attributes["helpfulness"].spearman is None
    assert len(list(quality_lines(metrics))) > 10
    draw_calibration(SCHEMA, metrics, Storage(str(tmp_path / "calibration.png")))
    draw_collinearity(metrics.collinearity, Storage(str(tmp_path / "collinearity.png")))


@pytest.mark.parametrize("name", ["lab", "steerlm", "steerlm_paper"])
def test_pictures_fit_any_schema(name: str, tmp_path: Path) -> None:
    schema = shipped(name)
    rng = np.random.default_rng(0)
    human_NA = rng.integers(0, schema.attributes[0].high + 1, (200, len(schema.names))).astype(np.float32)
    predicted_NA = (0.5 * human_NA + rng.normal(1, 0.3, human_NA.shape)).astype(np.float32)
    ratings = Ratings(
        human_NA, predicted_NA, np.full_like(human_NA, np.nan), rng.uniform(1, 99, 200), np.zeros(200, np.int32)
    )
    metrics = quality(schema, ratings, ratings)
    draw_calibration(schema, metrics, Storage(str(tmp_path / "calibration.png")))
    draw_collinearity(metrics.collinearity, Storage(str(tmp_path / "collinearity.png")))
    for picture in ("calibration.png", "collinearity.png"):
        height, width, _ = matplotlib.image.imread(tmp_path / picture).shape
        assert 500 < height < 2500
        assert 500 < width < 2500


def test_the_manifest_gets_everything_but_the_bins(lab: Lab) -> None:
    narrow = _predicted(lab, 0.5)
    metrics = quality(SCHEMA, narrow, narrow)
    whole = metrics.attributes["humor"]
    short = whole.without_bins()
    assert whole.reliability
    assert whole.calibrated
    assert whole.calibrated.reliability
    assert short.reliability == ()
    assert short.calibrated == whole.calibrated.model_copy(update={"reliability": ()})


def test_tables_are_aligned() -> None:
    assert as_text(Table("", ["name", "n", "value"], [["a", 1200, -0.001], ["long", 3, None]])) == [
        "name      n  value",
        "a     1,200   0.00",
        "long      3      -",
    ]


def _sides(*scores: tuple[float, float], lengths: tuple[int, int] = (5, 9)) -> list[Conversation]:
    """Both sides of pairs with these values of helpfulness; toxicity is 1, and the chosen answer is the shorter one."""
    sides = []
    for number, pair in enumerate(scores):
        for which, value, length in zip(("chosen", "rejected"), pair, lengths, strict=True):
            turns = (
                Message("user", "q"),
                Message("assistant", "an earlier answer"),
                Message("user", "q"),
                Message("assistant", "a" * length),
            )
            last = {} if math.isnan(value) else dict.fromkeys(NAMES, 1.0) | {"helpfulness": value}
            # The earlier answer's value must not count.
            sides.append(
                Conversation(
                    "s", "", turns, predicted=({"helpfulness": 99.0 - value}, last), id=f"hh-x-{number:09d}-{which}"
                )
            )
    return sides


def test_a_pair_is_decided_by_the_weighted_sum_at_the_last_answer() -> None:
    weights = {"helpfulness": 0.5, "toxicity": -0.5}
    metrics = pair_metrics(iter(reversed(_sides((3, 1), (3, 2), (1, 2), (2, 2)))), weights, StoredPairs(4, {}), "s")
    assert (metrics.predictor.n, metrics.predictor.ties, metrics.predictor.accuracy) == (4, 1, 0.625)
    assert metrics.length.accuracy == 0.0
    assert metrics.each_attribute == {"helpfulness": 0.625, "toxicity": 0.5}
    assert pair_metrics(iter(_sides((3, 1))), {"helpfulness": -1.0}, StoredPairs(1, {}), "s").predictor.accuracy == 0.0


def test_a_pair_with_an_unscored_side_is_counted_and_left_out_of_both_accuracies() -> None:
    metrics = pair_metrics(
        iter(_sides((3, math.nan), (3, 2), lengths=(9, 5))), {"helpfulness": 1.0}, StoredPairs(2, {}), "s"
    )
    assert metrics.unscored == 1
    assert (metrics.predictor.n, metrics.length.n) == (1, 1)
    none = pair_metrics(iter(_sides((3, math.nan))), {"helpfulness": 1.0}, StoredPairs(1, {"broken_json": 2}), "s")
    assert none.predictor == PairAccuracy(n=0, ties=0)
    assert "-" in list(pair_lines({"empty": none}))[2].split()
