"""Splits of a source: together they are its files, each line and row group once, whatever the size of a split."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data.unpacked
from data.conversation import Rejected
from data.lines import lines
from data.source_files import source_files
from data.splits import MOST_FILES, Split, is_small, splits_of
from data.unpacked import raw_lines

LINES = st.lists(st.sampled_from([b"", b"a", b"bb\r", b"\xff", b"\xef\xbb\xbf{}", b'{"a": 1}', b"x" * 40]), max_size=9)


def _raw(file: str, splits: list[Split]) -> Iterator[tuple[int, bytes] | Rejected]:
    """The lines of all ranges, numbered as the driver numbers them."""
    before = 0
    for split in splits:
        within = split.range()
        lacking = max(0, before - split.before)
        for line in raw_lines(file, within):
            if isinstance(line, Rejected):
                yield Rejected(line.file, line.line + lacking, line.reason, line.detail)
            else:
                yield line[0] + lacking, line[1]
        before += within.num_lines if within else 0


@given(LINES, st.booleans(), st.integers(1, 60))
@example([b"x" * 40, b"", b"a"], False, 1)
@settings(deadline=None)
def test_ranges_of_a_file_have_each_line_once_with_its_number(content: list[bytes], ended: bool, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.jsonl"
        file.write_bytes(b"\n".join(content) + b"\n" * ended)
        splits = splits_of(3, "messages", source_files(str(file)), size)
        assert sum(split.num_bytes for split in splits) == file.stat().st_size
        assert list(_raw(str(file), splits)) == list(raw_lines(str(file)))


def test_a_line_longer_than_a_range_and_an_overlong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.unpacked, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(data.unpacked, "CHUNK_BYTES", 7)
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n".join([b"a" * 90, b"b" * 500, b"c", b"", b"d" * 101, b"e"]))
    whole = list(raw_lines(str(file)))
    assert [line.line for line in whole if isinstance(line, Rejected)] == [2, 5]
    for size in (1, 7, 64, 90, 91, 92, 600):
        assert list(_raw(str(file), splits_of(0, "nemo", source_files(str(file)), size))) == whole


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 400))
@settings(deadline=None)
def test_ranges_of_a_parquet_file_have_each_row_once_with_its_number(groups: list[int], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "x.parquet")
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(file, schema) as writer:
            for number, rows in enumerate(groups):
                writer.write_table(pa.table({"text": [f"{number}-{row}" for row in range(rows)]}, schema=schema))
        splits = splits_of(0, "messages", source_files(file), size)
        assert [line for split in splits for line in lines(file, split.range())] == list(lines(file))


def test_a_damaged_parquet_file_is_one_split(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1" * 50)
    assert [split.start for split in splits_of(0, "messages", source_files(str(file)), 10)] == [None]


@pytest.mark.parametrize(
    ("name", "format"), [("x.jsonl.gz", "messages"), ("x.csv", "scored_text"), ("x.jsonl", "oasst_messages")]
)
def test_what_can_only_be_read_from_its_start_is_one_split(tmp_path: Path, name: str, format: str) -> None:
    (tmp_path / name).write_bytes(b"x\n" * 500)
    [split] = splits_of(0, format, source_files(str(tmp_path / name)), 10)
    assert (split.files, split.start, split.num_bytes) == ((str(tmp_path / name),), None, 1000)


def test_small_files_are_together_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 44):
        (tmp_path / f"{number:05d}.jsonl").write_text(json.dumps({"n": number}) + "\n")
    (tmp_path / "00100.jsonl").write_bytes(b"{}\n" * 100)
    found = source_files(str(tmp_path))
    splits = splits_of(0, "messages", found, 250)
    assert [file for split in splits for file in dict.fromkeys(split.files)].count(found.files[100]) == 2
    assert list(dict.fromkeys(file for split in splits for file in split.files)) == list(found.files)
    assert all(split.num_bytes <= 250 for split in splits)
    assert len({split.piece for split in splits}) == len(splits)
    assert [len(split.files) for split in splits_of(0, "messages", found, 10**9)] == [MOST_FILES, 44]
    assert not is_small(splits_of(0, "messages", found, 10**9), 10**9)
    assert is_small(splits_of(0, "messages", source_files(str(tmp_path / "0001*.jsonl")), 1000), 1000)
