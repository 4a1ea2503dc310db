"""Fingerprints of a run's sources and models: by one listing each, and without reading again what has not changed.

An object store lists its own checksums, so a start asks for pages of a listing and for no single file. On a disk the
content counts; the index beside the rows says which checksum a file had in which state, so that a start reads nothing
that has neither a new size nor a new date. Knows no format.
"""

import functools
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from data.shards import write
from data.source_files import SUFFIXES, SourceFiles, source_files
from data.storage import Storage, content_checksum

INDEX = "sources.parquet"
"""In the folder of the stage that read them: names, sizes, states and checksums of the files."""
MOST_NAMED = 64
"""A manifest has a checksum of each file of such a source; a larger one has one of all, and its files in the index."""
AT_ONCE = 16
"""Files read at a time."""
MOST_REMEMBERED = 2**20
"""Checksums that a process keeps: a stage asks for them before it begins and again at its end."""

Known = Mapping[tuple[str, str], str]
"""File and its state -> the checksum of its content."""


@dataclass(frozen=True)
class CheckedSource:
    """The files of one source, in order, and what tells whether their content is the same."""

    uri: str
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    states: tuple[str, ...]
    """On a disk: dates and inode, which change with every write; elsewhere "", as the listing has checksums."""
    checksums: tuple[str, ...]

    def fingerprints(self) -> dict[str, str]:
        """Name -> checksum of each file, or of all together if they are many."""
        if len(self.files) <= MOST_NAMED:
            return dict(zip(map(_printed, self.files), self.checksums, strict=True))
        digest = hashlib.sha256()
        for file, checksum in zip(self.files, self.checksums, strict=True):
            digest.update(f"{_printed(file)} {checksum}\n".encode())
        return {_printed(self.uri): f"{len(self.files):,} files, {digest.hexdigest()[:16]}"}

    def content(self) -> str:
        """16 hex digits of a file, or of all files of a folder by their names in it; a copy elsewhere has the same."""
        if self.files == (Storage(self.uri).uri,):
            return self.checksums[0]
        digest, folder = hashlib.sha256(), Storage(self.uri).path
        for file, checksum in zip(self.files, self.checksums, strict=True):
            digest.update(f"{_printed(posixpath.relpath(Storage(file).path, folder))} {checksum}\n".encode())
        return digest.hexdigest()[:16]

    def table(self) -> pa.Table:
        """A row for each file."""
        columns = {"source": [_printed(self.uri)] * len(self.files), "file": list(map(_printed, self.files))}
        return pa.table(
            columns | {"bytes": list(self.sizes), "state": list(self.states), "checksum": list(self.checksums)},
            schema=_SCHEMA,
        )


_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("file", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("state", pa.string()),
        pa.field("checksum", pa.string()),
    ]
)


def checked(uri: str, suffixes: tuple[str, ...] = SUFFIXES, known: Known | None = None) -> CheckedSource:
    """The files of the source at `uri`; raises FileNotFoundError as `source_files` does. `known`: of `read_index`."""
    return _checked(uri, source_files(uri, suffixes), known or {})


def checked_folder(uri: str, wanted: Callable[[str], bool], known: Known | None = None) -> CheckedSource:
    """The files below the folder at `uri` whose names there are `wanted`, also hidden ones."""
    folder = Storage(uri)
    listing = folder.fs.find(folder.path, detail=True)
    names = {posixpath.relpath(path, folder.path): path for path in listing}
    listed = {(folder / name).uri: listing[path] for name, path in sorted(names.items()) if wanted(name)}
    return _checked(uri, SourceFiles(tuple(listed), listed=listed), known or {})


def _checked(uri: str, found: SourceFiles, known: Known) -> CheckedSource:
    sizes, states, checksums = (_on_disk if Storage(uri).is_local else _listed)(found, known)
    return CheckedSource(uri, found.files, sizes, states, checksums)


def checksums(*uris: str) -> dict[str, str]:
    """The fingerprints of several sources together; a name that is no UTF-8 has its bytes escaped."""
    return together(checked(uri) for uri in uris)


def together(sources: Iterable[CheckedSource]) -> dict[str, str]:
    """Their fingerprints together."""
    return {name: checksum for source in sources for name, checksum in source.fingerprints().items()}


def write_index(sources: Iterable[CheckedSource], folder: Storage) -> None:
    """The index of those sources whose files no manifest names; none, no file."""
    tables = [source.table() for source in sources if len(source.files) > MOST_NAMED]
    if tables:
        write(tables, _SCHEMA, folder / INDEX)


def read_index(folder: Storage) -> Known:
    """What an earlier run left in `folder`; empty if nothing, or nothing that can be read."""
    file = folder / INDEX
    try:
        table = pq.read_table(file.path, filesystem=file.arrow_fs)
        rows = zip(*(table.column(name).to_pylist() for name in ("file", "state", "checksum")), strict=True)
    except (OSError, KeyError, pa.ArrowException):
        return {}  # then all files are read once more
    return {(name, state): checksum for name, state, checksum in rows if state}


Facts = tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]


def _listed(found: SourceFiles, known: Known) -> Facts:
    """Sizes, states and checksums by the listing; a store that lists no checksum is asked for each file."""

    def tag(file: str) -> str:
        etag = found.listed[file].get("ETag")
        # As s3fs itself makes a checksum of an ETag.
        return str(int(etag.strip('"').split("-")[0], 16)) if etag else _checksum_of_store(Storage(file))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        sums = tuple(content_checksum(t.encode()) for t in pool.map(tag, found.files))
    return tuple(int(found.listed[f].get("size") or 0) for f in found.files), ("",) * len(sums), sums


def _checksum_of_store(file: Storage) -> str:
    return str(file.fs.checksum(file.path))


def _on_disk(found: SourceFiles, known: Known) -> Facts:
    """Sizes, states and checksums of local files; only those that are not known in their state are read."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        stats = list(pool.map(os.stat, found.files))
        states = [f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for s in stats]

        def checksum(file: str, state: str) -> str:
            return known.get((_printed(file), state)) or _content(file, state)

        sums = tuple(pool.map(checksum, found.files, states))
    return tuple(s.st_size for s in stats), tuple(states), sums


@functools.lru_cache(MOST_REMEMBERED)
def _content(file: str, state: str) -> str:
    """The checksum of the file in this state."""
    with open(file, "rb") as stream:
        return content_checksum(hashlib.file_digest(stream, "sha256").digest())


def _printed(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
