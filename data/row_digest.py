"""A digest of a table's rows, the same in any storage, compression and row groups; a Parquet file's footer has it.

Each leaf of each column is one stream of bytes in row order, so that the digest does not depend on how the rows were
cut into tables. Knows no column.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.storage import Storage

CONTENT_KEY = b"steerlm.content"
"""Where a Parquet file that we wrote carries the digest of its rows."""
AT_ONCE = 16
"""Footers read at a time; an object store takes tens of milliseconds for each."""


class RowDigest:
    """Takes tables of one schema, in the order of their rows."""

    def __init__(self, schema: pa.Schema) -> None:
        self._names = schema.names
        self._streams: dict[str, hashlib.blake2b] = {}

    def update(self, table: pa.Table) -> None:
        # One chunk a column: the work for a chunk costs more than the copy.
        for name, column in zip(table.column_names, table.combine_chunks().columns, strict=True):
            for chunk in column.chunks:
                for leaf, content in _leaves(name, chunk):
                    self._streams.setdefault(leaf, hashlib.blake2b(digest_size=16)).update(content)

    def hexdigest(self) -> str:
        """32 hex digits of the columns' names, types and values."""
        streams = {leaf: stream.hexdigest() for leaf, stream in self._streams.items()}
        content = json.dumps([self._names, streams], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def content_of(file: Storage) -> str:
    """The digest in the file's footer; "" if the file was written without one."""
    return content_in(pq.read_metadata(file.path, filesystem=file.arrow_fs))


def content_of_all(folder: Storage, names: Sequence[str]) -> str:
    """16 hex digits of these files' names and digests; "" if there is none, or one has no digest or is broken."""

    def one(name: str) -> str:
        try:
            return content_of(folder / name)
        except pa.ArrowException:
            return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    if not found or not all(found.values()):
        return ""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def content_in(footer: pq.FileMetaData) -> str:
    """The same, of a footer that has been read."""
    return (footer.metadata or {}).get(CONTENT_KEY, b"").decode()


def _leaves(path: str, array: pa.Array) -> Iterator[tuple[str, bytes | pa.Buffer]]:
    """Each leaf's name with its type, and bytes that tell any two arrays apart.

    The type of a list is no part of it: Parquet gives the field of its items another name.
    """
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield f"{path}.lengths", _numbers(pc.fill_null(pc.list_value_length(array), -1))
        yield from _leaves(f"{path}.items", array.flatten())
    elif pa.types.is_struct(kind):
        yield f"{path}.valid", _numbers(array.is_valid())
        for field, child in zip(kind, array.flatten(), strict=True):
            yield from _leaves(f"{path}.{field.name}", child)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        yield f"{path}.lengths", _numbers(pc.fill_null(pc.binary_length(array), -1))
        yield f"{path}: {kind}", _text(array)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        yield f"{path}.valid", _numbers(array.is_valid())
        zero = pa.scalar(0, pa.int8()).cast(kind)
        yield f"{path}: {kind}", _numbers(pc.fill_null(array, zero) if array.null_count else array)
    else:
        yield f"{path}: {kind}", "".join(f"{value!r}," for value in array.to_pylist()).encode()


def _numbers(array: pa.Array) -> bytes:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).tobytes()


def _text(array: pa.Array) -> bytes | pa.Buffer:
    """The bytes of all entries; null has none."""
    if array.null_count:
        array = pc.fill_null(array, pa.scalar(b"").cast(array.type))
    _, offsets, content = array.buffers()
    if not len(array) or content is None:
        return b""
    first, last = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]].tolist()
    return content.slice(first, last - first)
