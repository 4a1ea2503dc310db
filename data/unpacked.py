"""A file's bytes as lines: unpacked as its name says, each line bounded, damage reported with its place.

Knows no JSON (`data.lines`) and no Parquet (`data.parquet_rows`).
"""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import math
import os
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import pyarrow as pa

from data.conversation import Rejected
from data.printable import printable
from data.storage import Storage, options

MAX_LINE_BYTES = 8 * 2**20
"""A longer line is rejected without being held: some 2 million tokens of text fit."""
MAX_RATIO = 200
"""A packed file may unpack to so many times its size; texts come to 3 to 20."""
FREE_BYTES = 2**30
"""Up to so many unpacked bytes no ratio is asked: short repetitive files are sound."""
CHUNK_BYTES = 2**16
SHOWN_ERROR = 120
"""Characters of a library's message that ours shows."""

FOREIGN: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip: give it a name that ends in .gz",
    b"\x28\xb5\x2f\xfd": "zstandard: give it a name that ends in .zst",
    b"\xfd7zXZ\x00": "xz: give it a name that ends in .xz",
    b"BZh": "bzip2: give it a name that ends in .bz2",
    b"PK\x03\x04": "a zip archive: give it a name that ends in .zip",
    b"PAR1": "Parquet: give it a name that ends in .parquet",
    b"\x04\x22\x4d\x18": "lz4: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"\xff\xfe": "UTF-16: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"{\x00": "UTF-16: write it as UTF-8 (iconv -f UTF-16LE -t UTF-8)",
    b"\x00{": "UTF-16: write it as UTF-8 (iconv -f UTF-16BE -t UTF-8)",
}
"""First bytes that no line of JSON has, and what the file is."""


class Damaged(Exception):
    """The file cannot be read further; the message says why."""


@dataclass
class FileRange:
    """A part of a file: the lines that start in the bytes [start, stop), or the row groups [start, stop) of Parquet."""

    start: int
    stop: int
    before: int = 0
    """Rows of a Parquet file before it. Nobody has counted the lines before it: they are numbered as if there were
    SOME_BEFORE, and who knows better adds the rest."""
    num_lines: int = 0
    """Lines that were read so far; the reader counts."""


SOME_BEFORE = 1
"""What is true of a file's first line alone (a byte order mark, the start of a JSON array) is not asked of line 2."""


def raw_lines(file: str, within: FileRange | None = None) -> Iterator[tuple[int, bytes] | Rejected]:
    """The lines of a file with their numbers; an overlong line is one Rejected, and so is the rest of a damaged file.

    Bytes are split at "\\n" only; text mode would also split at the lone "\\r" that people paste into chats.
    """
    number = before = within.before if within else 0
    with opened(file) as stream:
        try:
            lines, room = _from_start(file, stream, within)
            for number, raw in enumerate(_bounded(lines, _allowed_bytes(file), room), before + 1):
                if within:
                    within.num_lines = number - before
                yield _overlong(file, number, raw) if isinstance(raw, int) else (number, raw)
        except Damaged as error:
            yield Rejected(file, number + 1, "broken_file", str(error))
        except DAMAGE as error:
            if not is_damage(error):
                raise
            what = printable(str(error), SHOWN_ERROR)
            yield Rejected(file, number + 1, "broken_file", f"the file is torn here ({what}); fetch it again")


def _from_start(file: str, stream: IO[bytes], within: FileRange | None) -> tuple[io.BufferedReader, float]:
    """The file's lines from the start of the range, and how many bytes the lines have that start in it."""
    if not within or not within.start:
        lines = _unpacked(file, stream)
        _require_text(lines)
        return lines, within.stop if within else math.inf
    # One byte before it: if that ends a line, the next line is the range's; if not, the line is another range's.
    stream.seek(within.start - 1)
    lines = _unpacked(file, stream)
    return lines, within.stop - (within.start - 1 + _skipped(lines, math.inf))


def _bounded(lines: io.BufferedReader, allowed: float, room: float) -> Iterator[bytes | int]:
    """Each line that starts in the next `room` bytes, or its length if it is overlong.

    Raises Damaged beyond `allowed` bytes in all.
    """
    total = 0
    while total < room and (raw := lines.readline(MAX_LINE_BYTES + 1)):
        total += len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            del raw  # nothing of it is held while its rest is read over
            rest = _skipped(lines, allowed - total)
            total += rest
            yield MAX_LINE_BYTES + 1 + rest
        else:
            yield raw
        if total > allowed:
            raise Damaged(
                f"it unpacks to more than {total:,} bytes, over {MAX_RATIO} times its size; "
                "unpack it yourself if you trust it"
            )


DAMAGE = (
    *(EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error),
    *(ValueError, NotImplementedError, RuntimeError, OSError),
)
"""What the unpackers raise on bytes that are not theirs."""


def is_damage(error: BaseException) -> bool:
    """False for the system's own errors, which say nothing about the file's content: no access, no connection."""
    if not isinstance(error, OSError):
        return True
    # EINVAL: a damaged archive names a place before the file's start.
    return error.errno in (None, errno.EINVAL) and type(error) in (OSError, gzip.BadGzipFile)


@contextlib.contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """The bytes of a file as they are stored."""
    if "://" not in file:
        with open(file, "rb") as stream:
            yield stream
        return
    with fsspec.open(file, "rb", **options(file)) as remote:
        yield remote


def _unpacked(file: str, stream: IO[bytes]) -> io.BufferedReader:
    unpack = UNPACKERS.get(_suffix(file))
    if unpack is None and isinstance(stream, io.BufferedReader):
        return stream
    return io.BufferedReader(_Chunks(unpack(stream) if unpack else stream), CHUNK_BYTES)


def is_packed(file: str) -> bool:
    """Can the file be read from its start only?"""
    return _suffix(file) in UNPACKERS or ("://" in file and "::" in file)


def _suffix(file: str) -> str:
    """ ".gz" of "x.gz", and of "x.gz::https://..."; a local name may have "::" in it."""
    return posixpath.splitext(file.split("::")[0] if "://" in file else file)[1].lower()


class _Chunks(io.RawIOBase):
    """A stream that is read by what it has, so that what comes before damage is not lost with it."""

    def __init__(self, stream: Any):
        self._read = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _zip_member(stream: IO[bytes]) -> Any:
    archive = zipfile.ZipFile(stream)
    members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith(("__MACOSX/", "."))]
    if len(members) != 1:
        raise Damaged(f"the archive holds {len(members)} files, one is allowed; unzip it and name the folder")
    return archive.open(members[0])


UNPACKERS: Mapping[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".lzma": lzma.LZMAFile,
    ".zip": _zip_member,
    ".zst": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"),
}
"""By the name's end."""


def _require_text(lines: io.BufferedReader) -> None:
    start = lines.peek(8)[:8]
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise Damaged(f"this is {what}")


def _allowed_bytes(file: str) -> float:
    """How many bytes may come out of it."""
    if _suffix(file) not in UNPACKERS:
        return math.inf
    size = os.path.getsize(file) if "://" not in file else Storage(file).fs.size(Storage(file).path)
    return max(FREE_BYTES, MAX_RATIO * (size or 0))


def _skipped(lines: io.BufferedReader, allowed: float) -> int:
    """Read over the rest of a line, at most a bit more than `allowed` bytes; returns how many those were."""
    length = 0
    while length <= allowed and (part := lines.readline(CHUNK_BYTES)):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def _overlong(file: str, number: int, length: int) -> Rejected:
    return Rejected(
        file,
        number,
        "overlong_line",
        f"the line has {length:,} bytes, at most {MAX_LINE_BYTES:,} are allowed; split the record or take it out",
    )
