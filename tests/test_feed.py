import itertools

import numpy as np
import pyarrow as pa

from data.feed import EXAMPLE_SCHEMA, Feed, bucket, example_row
from data.tokens import Tokens


def _feed(num: int = 101) -> Feed:
    rows = [
        example_row(
            f"{i:04d}", f"g{i % 37}", Tokens(np.arange(5 + i % 20), np.arange(5 + i % 20) > 2, np.array([4], np.int32)), np.array([[i, np.nan]], np.float32)
        )
        for i in reversed(range(num))
    ]
    rows.append(example_row("x", "g", None, np.zeros(0), reason="over_long"))
    half = len(rows) // 2
    return Feed(pa.Table.from_pylist(part, schema=EXAMPLE_SCHEMA) for part in (rows[:half], rows[half:]))


def test_order_is_by_id_whatever_the_files() -> None:
    feed = _feed()
    assert len(feed) == 101
    assert feed.rejected == {"over_long": 1}
    assert [int(feed[i].values_SA[0, 0]) for i in range(101)] == list(range(101))
    assert feed[7].ids_T.tolist() == list(range(12))
    assert feed[7].trained_T.tolist() == [False] * 3 + [True] * 9
    assert np.isnan(feed[7].values_SA[0, 1])


def test_split_holds_out_whole_groups() -> None:
    feed = _feed()
    train, held = feed.split(5, 2)
    assert sorted(train + held) == list(range(101))
    assert held
    assert {i % 37 for i in train}.isdisjoint({i % 37 for i in held})
    assert feed.split(0, 0) == (list(range(101)), [])


def test_the_groups_that_pick_the_best_step_are_neither_trained_on_nor_judged() -> None:
    feed = _feed()
    judged = set(feed.split(5, 2)[1])
    train, validation = feed.split(5, 2, validation_buckets=4)
    assert validation
    assert sorted([*train, *validation, *judged]) == list(range(101))
    assert {i % 37 for i in train}.isdisjoint({i % 37 for i in validation})
    # Drawn independently: the other folds' buckets all give some of their groups.
    assert {bucket(f"g{i % 37}", 5) for i in validation} == {0, 1, 3, 4}
    assert sorted(itertools.chain(*feed.split(0, 0, validation_buckets=4))) == list(range(101))


def test_buckets_are_the_same_in_every_run() -> None:
    assert [bucket("tree-1", 10), bucket("tree-2", 10)] == [bucket("tree-1", 10), bucket("tree-2", 10)]


def test_an_epoch_has_every_example_once() -> None:
    feed = _feed()
    train, _ = feed.split(5, 2)
    steps = list(feed.epoch(train, row_tokens=64, rows_per_step=4, seed=0, epoch=0))
    assert {len(step) for step in steps} == {4}
    assert sorted(itertools.chain(*itertools.chain(*steps))) == train


def test_an_empty_feed_is_empty() -> None:
    assert len(Feed([])) == 0
