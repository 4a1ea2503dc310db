"""Rows that come again, found by a shuffle of ids, against a dict of all ids in one loop."""

import itertools
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.serial_rows import SerialRows, serial_rows, stored

from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, Message, arrow_schema, from_table, to_table
from data.shards import Output, write
from data.splits import Split
from jobs.pipelines.read_sources import ReadSplit
from jobs.pipelines.tasks import HereCalls
from jobs.pipelines.unique_rows import ShuffleSizes, UniqueRows, UniqueWriting

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Thousands of small files, each synced to a disk, take a minute."""
SCHEMA: AttributeSchema = shipped("lab")
VALUES = st.sampled_from([{}, {"humor": 1.0}, {"humor": 0.1}, {"humor": 1.0, "verbosity": 3.0}, {"toxicity": 4.0}])
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), VALUES, VALUES), max_size=24)
"""Source, content, and ratings of its two answers."""


def _row(content: int, *human: dict[str, float]) -> Conversation:
    turns = tuple(Message(role, f"{content}") for role in ("user", "assistant") * len(human))
    return Conversation(f"own-{content % 2}", "", turns, human=human, id=f"{content:032x}")


def _pieces(sources: dict[str, list[Conversation]], rows_per_piece: int, output: Output) -> list[ReadSplit]:
    found = []
    for source, rows in enumerate(sources.values()):
        for number, start in enumerate(range(0, len(rows) or 1, rows_per_piece)):
            split, part = Split(source, number), rows[start : start + rows_per_piece]
            tables = [to_table(part[i : i + 2], SCHEMA) for i in range(0, len(part), 2)]  # several row groups
            write(tables, arrow_schema(SCHEMA), output.pieces / split.piece)
            found.append(ReadSplit(split, {"rows": len(part)}))
    return found


def _unique(
    sources: dict[str, list[Conversation]], rows_per_piece: int, rows_per_part: int, sizes: ShuffleSizes, output: Output
) -> tuple[UniqueRows, list[pa.Table]]:
    pieces = _pieces(sources, rows_per_piece, output)
    unique = UniqueWriting(pieces, arrow_schema(SCHEMA), output, HereCalls(), sizes).write(rows_per_part, {})
    return unique, list(output.parts.tables())


def _require_equal(unique: UniqueRows, tables: list[pa.Table], expected: SerialRows) -> None:
    found = [row for table in tables for row in from_table(table)]
    assert [row.id for row in found] == [row.id for row in expected.rows]
    assert [[dict(v) for v in row.human] for row in found] == [stored(row) for row in expected.rows]
    assert unique.rows == len(found)
    assert unique.names == tuple(sorted({row.source for row in found}))
    for source, (name, count) in enumerate(expected.counts.items()):
        told = unique.counts.get(source)
        named = (told.duplicates, told.merged, told.several_raters) if told else (0, 0, 0)
        assert named == tuple(count[what] for what in ("duplicate", "merged", "several_raters"))
        spread = told.spread() if told else {}
        assert spread == pytest.approx(expected.spread.get(name, {}), abs=0.6e-4)


@given(ROWS, st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_rows_that_come_again_are_those_of_a_dict_of_all_ids(
    drawn: list[tuple[int, int, dict[str, float], dict[str, float]]],
    rows_per_piece: int,
    rows_per_part: int,
    ids_per_bucket: int,
    rows_per_task: int,
) -> None:
    rows = [(source, _row(content, *human)) for source, content, *human in drawn]
    sources = {name: [row for source, row in rows if source == place] for place, name in enumerate("ab")}
    expected = serial_rows(sources)
    if not rows:
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        sizes = ShuffleSizes(ids_per_bucket, rows_per_task, 1)
        unique, tables = _unique(sources, rows_per_piece, rows_per_part, sizes, Output(f"{folder}/rows", "f"))
        _require_equal(unique, tables, expected)
        assert [len(table) for table in tables[:-1]] == [rows_per_part] * (len(tables) - 1)
        whole, _ = _unique(sources, 100, rows_per_part, ShuffleSizes(), Output(f"{folder}/other", "f"))
        assert (whole.rows, whole.names, whole.counts) == (unique.rows, unique.names, unique.counts)
        for name in Output(f"{folder}/rows", "f").parts.names():
            assert Path(f"{folder}/rows/{name}").read_bytes() == Path(f"{folder}/other/{name}").read_bytes()


def test_ratings_of_another_number_of_answers_count_as_a_rater_and_change_nothing(tmp_path: Path) -> None:
    """Rows of ours bring their own ids: one id may stand for two texts."""
    rows = [_row(1, {"humor": 1.0}), _row(1, {"humor": 2.0}, {"humor": 4.0}), _row(1, {"humor": 3.0})]
    output = Output(str(tmp_path / "rows"), "f")
    unique, tables = _unique({"a": rows}, 2, 5, ShuffleSizes(), output)
    _require_equal(unique, tables, serial_rows({"a": rows}))
    assert (unique.rows, unique.counts[0].merged) == (1, 2)


def test_parts_that_are_there_stay_and_the_others_are_written_again(tmp_path: Path) -> None:
    sources = {"a": [_row(content % 17, {"humor": 1.0}) for content in range(40)]}
    output, sizes = Output(str(tmp_path / "rows"), "f"), ShuffleSizes(5, 6, 1)
    _unique(sources, 7, 3, sizes, output)
    whole = {name: (output.parts / name).checksum() for name in output.parts.names()}
    assert len(whole) == 6
    kept, lost, foreign = (tmp_path / "rows" / f"part-0000{n}.parquet" for n in (0, 3, 5))
    written = kept.stat().st_mtime_ns
    lost.unlink()
    write([to_table([_row(99, {})], SCHEMA)], arrow_schema(SCHEMA), output.parts / foreign.name)
    _unique(sources, 7, 3, sizes, output)
    assert {name: (output.parts / name).checksum() for name in output.parts.names()} == whole
    assert kept.stat().st_mtime_ns == written


class Counting(HereCalls):
    """Adds up what comes back to the driver."""

    num_bytes = 0

    def get(self, results: Sequence[Any]) -> list[Any]:
        found = super().get(results)
        self.num_bytes += sum(len(pickle.dumps(result)) for result in found)
        return found


def test_what_the_driver_gets_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A bucket tells how many rows go from each group, and sums for each source: no id, no position."""
    received = {}
    for number in (200, 2000):
        rows = [_row(content // 2, {"humor": float(content % 3)}) for content in range(number)]
        output, calls = Output(str(tmp_path / f"{number}"), "f"), Counting()
        pieces = _pieces({"a": rows}, number // 4, output)
        sizes = ShuffleSizes(number, number, 1)
        UniqueWriting(pieces, arrow_schema(SCHEMA), output, calls, sizes).write(number // 2, {})
        received[number] = calls.num_bytes
    assert received[2000] <= received[200] + 64, received


def test_chained_groups_fill_one_part(tmp_path: Path) -> None:
    """A part may take its rows from many groups of which hardly any row stays."""
    rows = list(itertools.chain(*([_row(0, {})] * 9 + [_row(content, {})] for content in range(1, 12))))
    output = Output(str(tmp_path / "rows"), "f")
    unique, tables = _unique({"a": rows}, 4, 12, ShuffleSizes(3, 5, 1), output)
    assert [len(table) for table in tables] == [12]
    _require_equal(unique, tables, serial_rows({"a": rows}))
