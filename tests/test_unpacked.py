"""Bytes as lines: packings, damage, foreign content, overlong lines and bombs, in bounded memory."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_rows import SCHEMA, good, helpsteer, reasons

import data.unpacked
from data.conversation import Conversation, Rejected
from data.lines import lines
from data.sources import read
from data.unpacked import MAX_LINE_BYTES, raw_lines

LINES = [json.dumps(helpsteer(response=f"A {i}")).encode() + b"\n" for i in range(50)]
CONTENT = b"".join(LINES)


def zipped(*names: str, content: bytes = CONTENT) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return packed.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zip": lambda content: zipped("x.jsonl", content=content),
    "zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True)),
}


@pytest.mark.case("09-damaged-compression")
@pytest.mark.parametrize("suffix", PACKED)
def test_every_packing_is_read_and_its_damage_is_one_rejection_with_its_place(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x.jsonl.{suffix}"
    packed = PACKED[suffix](CONTENT)
    file.write_bytes(packed)
    assert len(good(list(read(str(file), "helpsteer", SCHEMA)))) == len(LINES)
    file.write_bytes(packed[: len(packed) // 2])
    found = list(read(str(file), "helpsteer", SCHEMA))
    assert reasons(found) == [(len(found), "broken_file")]
    assert isinstance(found[-1], Rejected)
    assert found[-1].file == str(file)


@pytest.mark.case("09-damaged-compression")
def test_several_members_and_frames(tmp_path: Path) -> None:
    """A second gzip, bzip2 or xz stream is more of the same file; a second file of an archive is not passed by."""
    for suffix in ("gz", "bz2", "xz"):
        (tmp_path / f"x.{suffix}").write_bytes(PACKED[suffix](CONTENT) * 2)
        assert sum(1 for _ in raw_lines(str(tmp_path / f"x.{suffix}"))) == 2 * len(LINES)
    (tmp_path / "x.zip").write_bytes(zipped("a.jsonl", "b.jsonl"))
    [refused] = raw_lines(str(tmp_path / "x.zip"))
    assert isinstance(refused, Rejected)
    assert "holds 2 files, one is allowed" in refused.detail
    (tmp_path / "mac.zip").write_bytes(zipped("a.jsonl", "__MACOSX/._a.jsonl"))
    assert sum(1 for _ in raw_lines(str(tmp_path / "mac.zip"))) == len(LINES)


@pytest.mark.case("29-json-array")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(CONTENT), "this is gzip: give it a name that ends in .gz"),
        (bytes(pa.compress(CONTENT, "zstd", asbytes=True)), "this is zstandard"),
        (lzma.compress(CONTENT), "this is xz"),
        (zipped("x"), "this is a zip archive"),
        (CONTENT.decode().encode("utf-16"), "this is UTF-16: write it as UTF-8"),
        (CONTENT.decode().encode("utf-16-be"), "this is UTF-16"),
        (b"PAR1....", "this is Parquet: give it a name that ends in .parquet"),
    ],
)
def test_content_under_another_name_says_what_it_is(tmp_path: Path, content: bytes, sentence: str) -> None:
    for name, packed in (("x.jsonl", content), ("twice.jsonl.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(packed)
        [refused] = lines(str(tmp_path / name))
        assert isinstance(refused, Rejected)
        assert refused.reason == "broken_file"
        assert sentence in refused.detail


def test_the_systems_own_errors_are_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(raw_lines(str(tmp_path / "none.gz")))
    with pytest.raises(IsADirectoryError):
        list(raw_lines(str(tmp_path)))


def test_a_file_on_another_filesystem_is_read_alike() -> None:
    for suffix, pack in PACKED.items():
        with fsspec.open(f"memory://unpacked/x.{suffix}", "wb") as file:
            file.write(pack(CONTENT))
        assert sum(1 for _ in raw_lines(f"memory://unpacked/x.{suffix}")) == len(LINES)


@pytest.mark.case("B12: an overlong line")
@pytest.mark.parametrize("suffix", ["jsonl", "gz", "xz"])
def test_the_reader_goes_on_after_an_overlong_line(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x.{suffix}"
    long = b'{"prompt": "' + b"x" * (2 * MAX_LINE_BYTES) + b'"}\n'
    file.write_bytes(PACKED.get(suffix, bytes)(LINES[0] + long + LINES[1]))
    found = list(read(str(file), "helpsteer", SCHEMA))
    assert [type(r) for r in found] == [Conversation, Rejected, Conversation]
    assert reasons(found) == [(2, "overlong_line")]
    assert isinstance(found[1], Rejected)
    assert f"has {len(long):,} bytes, at most 8,388,608 are allowed" in found[1].detail


def test_a_line_of_the_very_limit_is_read(tmp_path: Path) -> None:
    line = LINES[0].rstrip() + b" " * (MAX_LINE_BYTES - len(LINES[0].rstrip()))
    (tmp_path / "x.jsonl").write_bytes(line + b"\n" + line + b" \n" + line)
    assert [type(r).__name__ for r in raw_lines(str(tmp_path / "x.jsonl"))] == ["tuple", "Rejected", "tuple"]


BOMB = """
import resource, sys
from data.attributes import shipped
from data.sources import read
schema = shipped("steerlm")
list(read(sys.argv[1], "helpsteer", schema))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = list(read(sys.argv[2], "helpsteer", schema))
print([type(r).__name__ for r in found], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.case("B12: a bomb of one line")
def test_a_line_of_200_mib_in_a_small_gz_takes_less_than_64_mib(tmp_path: Path) -> None:
    (tmp_path / "small.jsonl.gz").write_bytes(gzip.compress(LINES[0]))
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as file:
        file.write(LINES[0] + b'{"prompt": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + LINES[1])
    assert (tmp_path / "bomb.jsonl.gz").stat().st_size < 250_000
    arguments = [str(tmp_path / name) for name in ("small.jsonl.gz", "bomb.jsonl.gz")]
    done = subprocess.run(
        [sys.executable, "-c", BOMB, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    kinds, grown = done.stdout.rsplit(" ", 1)
    assert kinds == "['Conversation', 'Rejected', 'Conversation']"
    assert int(grown) < 64


@pytest.mark.case("B12: a packing ratio")
@pytest.mark.parametrize("content", [b"\n" * 400_000, b"x" * 400_000, b'{"a": 1}\n' * 40_000])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_given_up(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.unpacked, "FREE_BYTES", 100_000)
    monkeypatch.setattr(data.unpacked, "MAX_LINE_BYTES", 50_000)
    (tmp_path / "x.jsonl.xz").write_bytes(lzma.compress(content))
    found = list(raw_lines(str(tmp_path / "x.jsonl.xz")))
    assert isinstance(found[-1], Rejected)
    assert found[-1].reason == "broken_file"
    assert "over 200 times its size" in found[-1].detail
    (tmp_path / "x.jsonl").write_bytes(content)
    assert not [
        r for r in raw_lines(str(tmp_path / "x.jsonl")) if isinstance(r, Rejected) and r.reason == "broken_file"
    ]


@pytest.mark.case("07-parquet-latin1")
def test_parquet_text_that_is_no_utf8_rejects_its_row(tmp_path: Path) -> None:
    texts = [b"Why?", b"caf\xe9?", b"How?"]
    prompts = pa.array(texts, pa.binary()).view(pa.string())
    table = pa.Table.from_pylist([helpsteer() for _ in texts])
    pq.write_table(table.set_column(0, "prompt", prompts), tmp_path / "x.parquet")
    found = list(read(str(tmp_path / "x.parquet"), "helpsteer", SCHEMA))
    assert [type(r) for r in found] == [Conversation, Rejected, Conversation]
    assert reasons(found) == [(2, "invalid_utf8")]


@pytest.mark.case("08-parquet-damaged-page")
@pytest.mark.parametrize("at", [4, 30, 60, 100, 200])
def test_a_damaged_page_names_the_file(tmp_path: Path, at: int) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(
        pa.Table.from_pylist([helpsteer(response=f"{i}" * 50) for i in range(300)]), file, compression="snappy"
    )
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + b"\xff" * 60 + whole[at + 60 :])
    found = list(read(str(file), "helpsteer", SCHEMA))
    assert {r.reason for r in found if isinstance(r, Rejected)} <= {"broken_file", "invalid_utf8"}
    assert isinstance(found[-1], Rejected)
    assert found[-1].file == str(file)
    assert found[-1].detail.isprintable()


@pytest.mark.case("18-duplicate-keys")
def test_a_parquet_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "x.parquet")
    [refused] = lines(str(tmp_path / "x.parquet"))
    assert isinstance(refused, Rejected)
    assert "column 'prompt' is there twice" in refused.detail


@pytest.mark.case("B12: Parquet")
def test_parquet_bombs(tmp_path: Path) -> None:
    long = helpsteer(response="x" * (MAX_LINE_BYTES + 1))
    pq.write_table(pa.Table.from_pylist([helpsteer(), long, helpsteer()]), tmp_path / "row.parquet")
    assert reasons(list(read(str(tmp_path / "row.parquet"), "helpsteer", SCHEMA))) == [(2, "overlong_line")]
    huge = pa.Table.from_pylist([helpsteer(response="x" * 2**26 + "y")])
    pq.write_table(huge, tmp_path / "chunk.parquet", use_dictionary=False, compression="zstd")
    [refused] = read(str(tmp_path / "chunk.parquet"), "helpsteer", SCHEMA)
    assert isinstance(refused, Rejected)
    assert "its rows unpack to 67,1" in refused.detail
