"""The digest of rows: of every value and every type, whatever the tables and row groups they came in."""

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.attributes import shipped
from data.conversation import Conversation, Message, to_table
from data.row_digest import CONTENT_KEY, RowDigest, content_of
from data.shards import Output, Shard, merge, read, write, write_piece
from data.storage import Storage

SCHEMA = shipped("lab")
ROWS = [
    Conversation("s", "", (Message("user", f"q{n}"), Message("assistant", "ü" * n)), human=({"humor": float(n)},))
    for n in range(1, 30)
]


def digest(table: pa.Table, rows_each: int = 1000) -> str:
    found = RowDigest(table.schema)
    for start in range(0, len(table), rows_each):
        found.update(table.slice(start, rows_each))
    return found.hexdigest()


def test_it_does_not_depend_on_how_the_rows_are_cut() -> None:
    table = to_table(ROWS, SCHEMA)
    assert {digest(table, rows_each) for rows_each in (1, 2, 7, 1000)} == {digest(table)}
    assert digest(pa.concat_tables([table.slice(0, 5), table.slice(5)])) == digest(table)


def changed(**fields: object) -> list[Conversation]:
    return [*ROWS[:9], replace(ROWS[9], **fields), *ROWS[10:]]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        [*ROWS[1:], ROWS[0]],
        changed(id="other"),
        changed(messages=(Message("user", "q10"), Message("assistant", "ü" * 9 + "u"))),
        changed(messages=(Message("user", "q10ü"), Message("assistant", "ü" * 9))),
        changed(human=({"humor": math.nan},)),
        changed(human=({"creativity": 10.0},)),
        changed(predicted=({"humor": 0.0},)),
        changed(truncated=True),
        changed(tokens=1),
    ],
)
def test_each_change_changes_it(rows: list[Conversation]) -> None:
    assert digest(to_table(rows, SCHEMA)) != digest(to_table(ROWS, SCHEMA))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["", None]), pa.array([None, ""])),
        (pa.array(["ab", "c"]), pa.array(["a", "bc"])),
        (pa.array([0, None], pa.int8()), pa.array([0, 0], pa.int8())),
        (pa.array([1, 2], pa.int8()), pa.array([1, 2], pa.int16())),
        (pa.array([[1], None, [2]]), pa.array([[1], [], [2]])),
        (pa.array([[1, 2], []]), pa.array([[1], [2]])),
        (pa.array([{"a": 1}, None]), pa.array([{"a": 1}, {"a": None}])),
        (pa.array([True, False]), pa.array([True, None])),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), pa.array([[1.0, 3.0]], pa.list_(pa.float32(), 2))),
    ],
)
def test_what_is_missing_and_where_entries_end_counts(one: pa.Array, other: pa.Array) -> None:
    assert digest(pa.table({"x": one})) != digest(pa.table({"x": other}))
    assert digest(pa.table({"x": one}), 1) == digest(pa.table({"x": one}))


def test_a_written_file_has_that_of_its_own_rows_once(tmp_path: Path) -> None:
    table = to_table(ROWS, SCHEMA)
    first, second = (Storage(str(tmp_path)) / name for name in ("a.parquet", "b.parquet"))
    write([table], table.schema, first)
    assert content_of(first) == digest(table)
    some = read(Shard(first.uri, "a.parquet", 0, 9))
    write([some], some.schema, second)
    assert content_of(second) == digest(table.slice(0, 9))
    assert list(pq.read_metadata(second.path).metadata).count(CONTENT_KEY) == 1


def test_a_part_has_the_same_from_pieces_of_any_size(tmp_path: Path) -> None:
    table, found = to_table(ROWS, SCHEMA), set()
    for size in (4, 11):
        output = Output(str(tmp_path / str(size)), "f")
        shards = [Shard("u", "p.parquet", start, min(start + size, 29)) for start in range(0, 29, size)]
        for shard in shards:
            write_piece(table.slice(shard.start, shard.stop - shard.start), shard, output)
        merge("p.parquet", [shard.piece for shard in shards], output)
        found.add(content_of(output.parts / "p.parquet"))
    assert found == {digest(table)}


def test_a_file_of_another_writer_has_none(tmp_path: Path) -> None:
    pq.write_table(to_table(ROWS, SCHEMA), tmp_path / "a.parquet")
    assert content_of(Storage(str(tmp_path)) / "a.parquet") == ""
