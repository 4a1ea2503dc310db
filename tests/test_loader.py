"""Every example of an epoch once, in an order that depends on seed and epoch alone; a position says what is left."""

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.examples import EXAMPLE_SCHEMA, Examples, Origin, Split, bucket, counted, digest_of, example_row
from data.loader import SHARD_ROWS, Corpus, DataLoader, Position, copies, counts, some
from data.shard_list import ShardList
from data.shards import Input, Output
from data.storage import Storage
from data.tokens import Tokens
from jobs.pipelines.map_rows import write_table

NUM = 101


def _table(num: int = NUM) -> pa.Table:
    rows = []
    for i in reversed(range(num)):
        tokens = Tokens(np.arange(5 + i % 20), np.arange(5 + i % 20) > 2, np.array([4], np.int32))
        rows.append(
            example_row(Origin(f"{i:04d}", f"g{i % 37}", f"s{i % 2}"), tokens, np.array([[i, np.nan]], np.float32))
        )
    rows.append(example_row(Origin("x", "g"), None, np.zeros(0), reason="over_long"))
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Five files, so that windows of 50 rows have two of them."""
    table, folder = _table(), Storage(str(tmp_path)) / "examples"
    for start in range(0, len(table), 24):
        write_table(table.slice(start, 24), folder, f"part-{start:05d}.parquet")
    return Corpus.of(folder)


def _feed(corpus: Corpus, **settings: object) -> DataLoader:
    return DataLoader(
        corpus,
        **({"split": Split(), "pack_tokens": 64, "packs_per_step": 4, "epochs": 2, "window_rows": 50} | settings),
    )  # type: ignore[arg-type]


def _ids(loader: DataLoader, start: Position | None = None) -> list[str]:
    return [step.examples.ids[i] for step in loader.steps(start) for row in step.packs for i in row]


def test_examples_are_ordered_by_id_whatever_the_files() -> None:
    table = _table()
    examples = Examples([table.slice(50), table.slice(0, 50)])
    assert len(examples) == NUM
    assert examples.rejected == {"over_long": 1}
    assert examples.ids == [f"{i:04d}" for i in range(NUM)]
    assert examples.sources[7] == "s1"
    assert examples[7].ids_T.tolist() == list(range(12))
    assert examples[7].trained_T.tolist() == [False] * 3 + [True] * 9
    assert np.isnan(examples[7].values_SA[0, 1])
    assert len(Examples([])) == 0


def test_a_split_holds_out_whole_groups() -> None:
    groups = {f"g{i}" for i in range(37)}
    split = Split(5, 2)
    held = {g for g in groups if split.validates(g)}
    assert held
    assert {g for g in groups if split.trains(g)} == groups - held
    assert all(Split().trains(g) and not Split().validates(g) for g in groups)


def test_the_groups_that_pick_the_best_step_are_neither_trained_on_nor_judged() -> None:
    groups = {f"g{i}" for i in range(37)}
    judged = {g for g in groups if Split(5, 2).validates(g)}
    split = Split(5, 2, validation_buckets=4)
    trained, picking = ({g for g in groups if role(g)} for role in (split.trains, split.validates))
    assert trained | picking | judged == groups
    assert len(trained) + len(picking) + len(judged) == len(groups)
    # Drawn independently: the other folds' buckets all give some of their groups.
    assert {bucket(g, 5) for g in picking} == {0, 1, 3, 4}


def test_buckets_are_the_same_in_every_run() -> None:
    assert (bucket("tree-1", 10), bucket("tree-2", 10)) == (6, 8)


def test_an_epoch_has_every_example_once_in_rows_that_fit(corpus: Corpus) -> None:
    split = Split(5, 2)
    loader = _feed(corpus, split=split, epochs=1)
    assert len(loader.windows(0)) == 3
    trained = sorted(f"{i:04d}" for i in range(NUM) if split.trains(f"g{i % 37}"))
    assert sorted(_ids(loader)) == trained
    for step in loader.steps():
        assert 1 <= len(step.packs) <= 4
        assert all(sum(int(step.examples.lengths[i]) for i in row) <= 64 for row in step.packs)
    held = [examples.ids[i] for examples, rows in loader.validation(3) for row in rows for i in row]
    assert sorted([*held, *trained]) == [f"{i:04d}" for i in range(NUM)]
    assert {len(rows) for _, rows in loader.validation(3)} == {3}


def test_epochs_and_seeds_differ_and_repeat(corpus: Corpus) -> None:
    loader = _feed(corpus)
    both = _ids(loader)
    assert both == _ids(loader)
    assert both[:NUM] != both[NUM:]
    assert Counter(both) == Counter([f"{i:04d}" for i in range(NUM)] * 2)
    assert both != _ids(_feed(corpus, seed=1))


def test_from_any_position_on_come_just_the_steps_that_are_left(corpus: Corpus) -> None:
    loader = _feed(corpus)
    steps = list(loader.steps())
    whole = _ids(loader)
    done = 0
    for step in steps:
        done += sum(map(len, step.packs))
        assert _ids(loader, step.after) == whole[done:]
        assert [s.progress for s in loader.steps(step.after)] == [
            s.progress for s in steps if s.progress > step.progress
        ]
    assert steps[-1].progress == 2.0
    assert all(a.progress < b.middle < b.progress for a, b in itertools.pairwise(steps))
    assert [s.is_first for s in steps].count(True) == 6


def test_a_position_costs_no_reading_of_what_is_done(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = _feed(corpus)
    steps = list(loader.steps())
    read: list[list[int]] = []
    whole = Corpus.read

    def counted(corpus: Corpus, shards: list[int]) -> Examples:
        read.append(list(shards))
        return whole(corpus, shards)

    monkeypatch.setattr(Corpus, "read", counted)
    for step in steps[:-1]:
        read.clear()
        assert next(loader.steps(step.after)).progress > step.progress
        left = loader.windows(step.after.epoch)[step.after.window :]
        left += loader.windows(1) if step.after.epoch == 0 else []
        assert read[0] == left[0], "the window of the position is the first that is read"
        assert len(read) <= 2, "and the next one, while the first is used"


def test_a_corpus_travels_as_its_files() -> None:
    few, many = (
        Corpus("u", ShardList.of([Input(f"u/{i}", f"{i}.parquet", rows) for i in range(10)], SHARD_ROWS))
        for rows in (SHARD_ROWS, SHARD_ROWS * 10_000)
    )
    assert len(many.shards) == 100_000
    assert len(pickle.dumps(many)) == len(pickle.dumps(few))


def test_a_source_s_weight_says_how_often_an_epoch_has_its_examples(corpus: Corpus) -> None:
    loader = _feed(corpus, epochs=4, weights={"s0": 2.5, "s1": 0.25})
    found = Counter(_ids(loader))
    assert {found[f"{i:04d}"] for i in range(0, NUM, 2)} == {10}
    assert {found[f"{i:04d}"] for i in range(1, NUM, 2)} == {1}
    assert sum(copies(str(i), 0.3, 0, 0) for i in range(2000)) == pytest.approx(600, abs=60)
    assert copies("a", 0.0, 0, 3) == 0


def test_memory_holds_windows_not_the_corpus(corpus: Corpus) -> None:
    assert max(len(step.examples) for step in _feed(corpus).steps()) <= 50


def test_what_was_left_out_is_counted(corpus: Corpus) -> None:
    Output(corpus.uri, "").totals.write_json(counted(_table()))
    assert counts(Storage(corpus.uri)) == {"examples": NUM, "cut": 0, "over_long": 1}
    assert len(some(Storage(corpus.uri), 30)) == 30
    assert len(some(Storage(corpus.uri), 1000)) == NUM


def test_a_digest_tells_multisets_apart_and_knows_no_order() -> None:
    assert digest_of(["a", "b", "b"]) == digest_of(["b", "a", "b"])
    assert len({digest_of(ids) for ids in (["a", "b"], ["a", "b", "b"], ["a"], ["a", "c"], [])}) == 5
