"""What the predictor's stage refuses before it trains."""

import pytest

from jobs.runner.stage import StageError
from jobs.train_predictor import require_labels


def test_an_attribute_that_nobody_rated_is_an_error() -> None:
    labels = {
        name: {"valid": valid, "missing": 10 - valid, "out_of_range": 0}
        for name, valid in {"quality": 10, "humor": 0, "toxicity": 3}.items()
    }
    with pytest.raises(StageError, match=r"rated for humor \(quality: 10, toxicity: 3\), so no predictor can learn it"):
        require_labels(labels)


def test_an_attribute_that_is_a_measure_of_the_text_needs_no_rating() -> None:
    labels = {"quality": {"valid": 10}, "verbosity": {"valid": 0}}
    require_labels(labels, {"verbosity": "words"})
    with pytest.raises(StageError, match=r"rated for verbosity.*annotate\.raters"):
        require_labels(labels)


def test_attributes_that_are_rated_now_and_then_are_fine() -> None:
    require_labels({"quality": {"valid": 1, "missing": 9, "out_of_range": 0}})
