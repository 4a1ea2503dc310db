"""The numbers of rated answers, and who may be judged on which."""

import math

import numpy as np
import pytest

from data.conversation import Conversation, Message
from data.examples import Split, bucket
from data.ratings import joined, ratings_of
from jobs.evaluation.held_out import rated_in

NAMES = ("quality", "humor")


def _row(number: int, *human: dict[str, float], predicted: tuple[dict[str, float], ...] = ()) -> Conversation:
    turns = [
        Message(role, f"{role} {number} {turn}" + "!" * turn)
        for turn in range(len(human))
        for role in ("user", "assistant")
    ]
    return Conversation("s", "", tuple(turns), human=human, predicted=predicted, group=f"tree {number}")


def test_every_rated_answer_is_one_line_and_unrated_ones_are_none() -> None:
    rows = [
        _row(1, {"quality": 3.0}, {}, {"humor": 1.0}, predicted=({}, {"quality": 1.0}, {"quality": 2.0, "humor": 0.5})),
        _row(2, {}),
    ]
    found = ratings_of(rows, NAMES, 4)
    assert len(found) == 2
    np.testing.assert_array_equal(found.human_NA, [[3, math.nan], [math.nan, 1]])
    np.testing.assert_array_equal(found.predicted_NA, [[math.nan, math.nan], [2, 0.5]])
    assert np.isnan(found.truth_NA).all()
    assert found.length_N.tolist() == [len("assistant 1 0"), len("assistant 1 2!!")]
    assert found.bucket_N.tolist() == [bucket("tree 1", 4)] * 2


def test_nothing_joined_is_nothing() -> None:
    none = joined([], 2)
    assert len(none) == 0
    assert none.human_NA.shape == (0, 2)
    assert len(joined([none, ratings_of([_row(1, {"quality": 1.0})], NAMES, 0)], 2)) == 1


def test_the_mean_to_beat_comes_from_the_other_buckets_only() -> None:
    rows = [
        _row(n, {"quality": float(n % 5)} | ({"humor": 2.0} if bucket(f"tree {n}", 3) == 0 else {})) for n in range(60)
    ]
    rated = ratings_of(rows, NAMES, 3)
    means_NA = rated.training_means_NA(rated)
    for number in range(3):
        others = rated.human_NA[rated.bucket_N != number, 0]
        assert means_NA[rated.bucket_N == number, 0] == pytest.approx(float(others.mean()))
    # Humor is rated in bucket 0 alone: nothing is known of it where that is held out.
    assert np.isnan(means_NA[rated.bucket_N == 0, 1]).all()
    assert (means_NA[rated.bucket_N != 0, 1] == 2).all()


def test_rows_that_were_trained_on_are_never_judged_or_calibrated_on() -> None:
    """What is scored as held out is just what the learner's own split leaves out, in every fold."""
    rows = [_row(n, {"quality": 1.0}) for n in range(200)]
    groups = {r.group for r in rows}
    for fold in range(3):
        judged = {r.group for r in rated_in(rows, 3, fold)}
        assert judged
        assert judged == {g for g in groups if not Split(3, fold).trains(g)}
        split = Split(3, fold, validation_buckets=5)
        assert judged.isdisjoint(g for g in groups if split.trains(g) or split.validates(g))
