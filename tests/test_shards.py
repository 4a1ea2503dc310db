"""Shards, pieces and parts on a disk, without Ray: names, row groups, repeated merges, and what an audit compares."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.audit import audit_file, num_doubled
from data.counters import added, counters_of, with_counters
from data.operators import Score, read_shard, write_shard
from data.shards import (
    Input,
    Output,
    Shard,
    fingerprint_of,
    inputs_of,
    merge,
    packed,
    read,
    unpacked,
    write,
    write_piece,
)
from data.storage import Storage


def _file(folder: Path, name: str, start: int, stop: int, group: int = 4) -> Storage:
    table = pa.table(
        {"id": [f"{i:04d}" for i in range(start, stop)]}, schema=pa.schema([("id", pa.string())], metadata={b"k": b"v"})
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, row_group_size=group)
    return Storage(str(folder))


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 8), (3, 9), (0, 10), (9, 10), (5, 6)])
def test_a_shard_is_its_rows_whatever_the_row_groups(tmp_path: Path, start: int, stop: int) -> None:
    file = _file(tmp_path, "a.parquet", 0, 10) / "a.parquet"
    table = read(Shard(file.uri, "a.parquet", start, stop))
    assert table.column("id").to_pylist() == [f"{i:04d}" for i in range(start, stop)]
    assert table.schema.metadata[b"k"] == b"v"
    assert unpacked(packed(table)).equals(table, check_metadata=True)


def test_inputs_are_listed_in_order_and_empty_files_left_out(tmp_path: Path) -> None:
    a, b = _file(tmp_path / "a", "p1.parquet", 0, 3), _file(tmp_path / "b", "p1.parquet", 0, 2)
    _file(tmp_path / "a", "p0.parquet", 0, 5)
    _file(tmp_path / "a", "p2.parquet", 0, 0)
    assert [(i.part, i.num_rows) for i in inputs_of([a])] == [("p0.parquet", 5), ("p1.parquet", 3)]
    assert [i.part for i in inputs_of([a, b])] == ["00-p0.parquet", "00-p1.parquet", "01-p1.parquet"]
    assert inputs_of([Storage(str(tmp_path / "none"))]) == []
    assert [(s.start, s.stop, s.piece) for s in Input("u", "p.parquet", 5).shards(3)] == [
        (0, 3, "p.000000000-000000003.parquet"),
        (3, 5, "p.000000003-000000005.parquet"),
    ]


def _pieces(tmp_path: Path) -> tuple[Input, Output, list[str]]:
    source = _file(tmp_path / "in", "p.parquet", 0, 700, group=256)
    (file,) = inputs_of([source])
    output = Output(str(tmp_path / "out"), "s1")
    for shard in file.shards(300):
        table = read(shard)
        write_piece(with_counters(table, {"rows": len(table), "sum": 0.5}), shard, output)
    return file, output, [s.piece for s in file.shards(300)]


def test_pieces_become_a_part_in_order_with_their_tallies_added(tmp_path: Path) -> None:
    file, output, names = _pieces(tmp_path)
    assert output.finished([file]) == {}
    assert merge(file.part, names, output) == {"rows": 700, "sum": 1.5}
    assert output.finished([file]) == {"p.parquet": {"rows": 700, "sum": 1.5}}
    part = output.parts / "p.parquet"
    metadata = pq.read_metadata(part.path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [256, 44, 256, 44, 100]
    assert fingerprint_of(pq.read_schema(part.path)) == "s1"
    assert output.pieces.names() == []
    verdict, ids = audit_file(file, output, 1)
    assert verdict.holds  # type: ignore[union-attr]
    assert ids == [f"{i:04d}" for i in range(700)]
    # A merge whose node died after the part was there is done again, without the pieces.
    assert merge(file.part, names, output) == {"rows": 700, "sum": 1.5}


def test_a_part_of_another_making_is_not_kept(tmp_path: Path) -> None:
    file, output, names = _pieces(tmp_path)
    write(
        [pa.table({"id": ["old"]})],
        pa.schema([("id", pa.string())], metadata={b"steerlm.stamp": b"s0"}),
        output.parts / file.part,
    )
    assert output.finished([file]) == {}
    assert merge(file.part, names, output)["rows"] == 700
    assert audit_file(file, output, 1)[0].holds  # type: ignore[union-attr]


def test_half_written_files_are_swept_up(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), "s1")
    for name in ("p.parquet", "p.parquet.1a2b3c4d.tmp"):
        (output.parts / name).write_bytes(b"x")
    output.sweep()
    assert output.parts.names() == ["p.parquet"]


def test_an_id_in_two_files_meets_itself_in_a_bucket(tmp_path: Path) -> None:
    folders = [_file(tmp_path / name, "p.parquet", start, start + 60) for name, start in (("a", 0), ("b", 50))]
    files = [inputs_of([folder])[0] for folder in folders]
    buckets = [audit_file(file, Output(folder.uri, ""), 4)[1:] for file, folder in zip(files, folders, strict=True)]
    found = sorted(i for bucket in buckets[0] for i in bucket)  # type: ignore[union-attr]
    assert found == [f"{i:04d}" for i in range(60)]
    assert sum(num_doubled(*same) for same in zip(*buckets, strict=True)) == 10  # type: ignore[arg-type]
    assert num_doubled([], []) == 0


class Doubler:
    """A worker whose output has more rows than its input."""

    def __init__(self, fail: str = ""):
        if fail == "start":
            raise OSError(2, "nothing there")
        self.fail = fail

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.fail == "bug":
            raise KeyError("a bug")
        if self.fail == "row":
            raise OSError(5, "this row cannot be read")
        return with_counters(pa.concat_tables([batch, batch]), {"tokens": 7})


def _through(shard: Shard, output: Output, fail: str = "") -> dict[str, object]:
    batch = pa.table({name: [value] for name, value in vars(shard).items()})
    return write_shard(Score(Doubler, {"fail": fail})(read_shard(batch, None)), output).to_pylist()[0]


def test_a_shard_goes_through_the_operators(tmp_path: Path) -> None:
    _file(tmp_path / "in", "p.parquet", 0, 10)
    (file,) = inputs_of([Storage(str(tmp_path / "in"))])
    output, (shard,) = Output(str(tmp_path / "out"), "s"), file.shards(256)
    row = _through(shard, output)
    assert (row["failure"], row["counters"], row["part"]) == ("", '{"rows": 10, "tokens": 7}', "p.parquet")
    assert "payload" not in row
    assert counters_of(pq.read_schema((output.pieces / shard.piece).path)) == {"rows": 10, "tokens": 7}
    assert pq.read_metadata((output.pieces / shard.piece).path).num_rows == 20
    assert "nothing there" in str(_through(shard, output, "start")["failure"])
    assert "this row cannot be read" in str(_through(shard, output, "row")["failure"])
    with pytest.raises(KeyError, match="a bug"):
        _through(shard, output, "bug")
    gone = Shard(str(tmp_path / "gone.parquet"), "p.parquet", 0, 1)
    assert "gone.parquet" in str(_through(gone, output)["failure"])


def test_a_full_disk_is_a_failure_in_the_row(tmp_path: Path) -> None:
    _file(tmp_path / "in", "p.parquet", 0, 10)
    (shard,) = inputs_of([Storage(str(tmp_path / "in"))])[0].shards(256)
    (tmp_path / "out.pieces").write_text("a file where a folder should be")
    assert "cannot write" in str(_through(shard, Output(str(tmp_path / "out"), "s"))["failure"])


def test_tallies_add_up_name_by_name() -> None:
    assert added([{"a": 1, "b": 2.5}, {"a": 3}, {}]) == {"a": 4, "b": 2.5}
    assert counters_of(pa.schema([])) == {}
