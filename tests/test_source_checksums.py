"""Fingerprints of sources: by a listing alone on a store, by content on a disk, and read once."""

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.read_files import counted_reads

from data import source_checksums
from data.source_checksums import MOST_NAMED, checked, checksums, read_index, together, write_index
from data.source_files import source_files
from data.storage import Storage, options

MANY = MOST_NAMED + 1


def _files(folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(number):
        (folder / f"{i:03d}.jsonl").write_text(f"{i}\n")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The local files whose content was read."""
    return counted_reads(monkeypatch)


def test_a_few_files_are_named_each_with_the_checksum_that_a_storage_has(tmp_path: Path) -> None:
    _files(tmp_path, 2)
    wanted = {str(tmp_path / name): (Storage(str(tmp_path)) / name).checksum() for name in ("000.jsonl", "001.jsonl")}
    assert checksums(str(tmp_path)) == wanted


def test_many_files_have_one_fingerprint_that_changes_with_each_of_them(tmp_path: Path) -> None:
    _files(tmp_path, MANY)
    before = checksums(str(tmp_path))
    assert list(before) == [str(tmp_path)]
    assert before[str(tmp_path)].startswith(f"{MANY} files, ")
    (tmp_path / "007.jsonl").write_text("another\n")
    changed = checksums(str(tmp_path))
    (tmp_path / "007.jsonl").rename(tmp_path / "008a.jsonl")
    renamed = checksums(str(tmp_path))
    assert len({tuple(found.values()) for found in (before, changed, renamed)}) == 3
    (tmp_path / "008a.jsonl").rename(tmp_path / "007.jsonl")
    assert checksums(str(tmp_path)) == changed


def test_what_the_index_knows_is_not_read_again(tmp_path: Path, read: list[str]) -> None:
    source, stage = tmp_path / "source", Storage(str(tmp_path / "rows"))
    _files(source, MANY)
    first = checked(str(source))
    write_index([first], stage)
    assert len(read) == MANY
    read.clear()
    assert checked(str(source), known=read_index(stage)) == first
    assert not read
    os.utime(source / "003.jsonl")  # a new date alone: read again, and the same
    (source / "004.jsonl").write_text("x\n")  # as long as before
    again = checked(str(source), known=read_index(stage))
    assert sorted(read) == ["003.jsonl", "004.jsonl"]
    assert [a == b for a, b in zip(first.checksums, again.checksums, strict=True)].index(False) == 4
    assert again.checksums[3] == first.checksums[3]


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"file": ["a"]}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("content", [b"", b"no Parquet", _parquet(), None])
def test_an_index_that_cannot_be_read_is_made_anew(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / source_checksums.INDEX).write_bytes(content)
    assert read_index(Storage(str(tmp_path))) == {}


def test_few_files_leave_no_index(tmp_path: Path) -> None:
    _files(tmp_path / "source", 3)
    write_index([checked(str(tmp_path / "source"))], Storage(str(tmp_path / "rows")))
    assert not (tmp_path / "rows").exists()


def test_a_name_that_is_no_utf8_can_be_indexed(tmp_path: Path) -> None:
    _files(tmp_path / "source", MANY)
    os.rename(os.fsencode(tmp_path / "source/000.jsonl"), os.fsencode(tmp_path / "source") + b"/\xff.jsonl")
    found = checked(str(tmp_path / "source"))
    write_index([found], Storage(str(tmp_path / "rows")))
    assert together([found]) == checksums(str(tmp_path / "source"))
    assert len(read_index(Storage(str(tmp_path / "rows")))) == MANY


def test_a_link_counts_as_what_it_points_to(tmp_path: Path) -> None:
    _files(tmp_path / "elsewhere", 1)
    (tmp_path / "source").mkdir()
    os.symlink(tmp_path / "elsewhere/000.jsonl", tmp_path / "source/a.jsonl")
    for uri in (str(tmp_path / "source/*.jsonl"), str(tmp_path / "source")):
        assert source_files(uri).files == (str(tmp_path / "source/a.jsonl"),)
        before = checksums(uri)
        (tmp_path / "elsewhere/000.jsonl").write_text(f"new {uri}")
        assert checksums(uri) != before


def _uploaded(s3: str, number: int) -> str:
    fs = fsspec.filesystem("s3", **options("s3://"))
    fs.pipe({f"bucket/sources-{number}/{i:05d}.jsonl": f"{i}\n".encode() for i in range(number)})
    return f"{s3}/sources-{number}"


@pytest.mark.parametrize("glob", ["", "/*.jsonl"])
def test_on_a_store_no_file_is_asked_for(glob: str, s3: str, s3_requests: list[str]) -> None:
    uri = _uploaded(s3, MANY)
    s3_requests.clear()
    found = checked(uri + glob)
    few = len(s3_requests)
    assert (len(found.files), few <= 8) == (MANY, True), s3_requests
    assert found.checksums[0] == Storage(found.files[0]).checksum()
    more = _uploaded(s3, 3 * MANY)
    s3_requests.clear()
    assert len(checked(more + glob).files) == 3 * MANY
    assert len(s3_requests) == few, "they fit into one page of a listing"
    (Storage(uri) / "00000.jsonl").write_bytes(b"1\n")
    assert together([checked(uri + glob)]) != together([found])
    (Storage(uri) / "00000.jsonl").write_bytes(b"0\n")
    assert together([checked(uri + glob)]) == together([found])
