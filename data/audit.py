"""Does a part hold the very rows of its input? Read from the files alone, whatever their writer noted. Knows no Ray.

The `id` column of each part must equal that of its input, in order: then nothing is lost, doubled or unknown in a file.
To see that no id is in two files, ids are put into buckets by hash: equal ids meet in one bucket, and no process needs
them all. Comparing whole ids proves this; a multiset hash could collide, and could not name what is wrong.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.shards import Input, Output, fingerprint_of
from data.storage import Storage


@dataclass(frozen=True)
class FileAudit:
    """What became of one input file."""

    part: str
    rows: int
    """Rows of the input."""
    found: int
    """Rows of the part."""
    lost: int = 0
    unknown: int = 0
    doubled: int = 0
    in_order: bool = True
    fingerprint: str = ""
    digest: str = ""
    """Of the part's ids, in order."""

    @property
    def holds(self) -> bool:
        return self.rows == self.found and not (self.lost or self.unknown or self.doubled) and self.in_order


def ids_of(file: Storage) -> pa.ChunkedArray:
    """The `id` column."""
    return pq.read_table(file.path, columns=["id"], filesystem=file.arrow_fs).column("id")


def audit_file(file: Input, output: Output, num_buckets: int) -> tuple[FileAudit | list[str], ...]:
    """The audit of one file, then the part's ids by bucket."""
    part = output.parts / file.part
    expected = ids_of(Storage(file.uri))
    if not part.exists():
        return FileAudit(file.part, len(expected), 0, lost=len(expected)), *([] for _ in range(num_buckets))
    found = ids_of(part)
    fingerprint = fingerprint_of(pq.read_schema(part.path, filesystem=part.arrow_fs))
    return _compared(file.part, expected, found, fingerprint), *_bucketed(found.to_pylist(), num_buckets)


def audit_files(files: Sequence[Input], output: Output, num_buckets: int) -> tuple[list[FileAudit] | list[str], ...]:
    """The audits of several files, then all their parts' ids by bucket."""
    audits: list[FileAudit] = []
    buckets: list[list[str]] = [[] for _ in range(num_buckets)]
    for file in files:
        audit, *ids = audit_file(file, output, num_buckets)
        assert isinstance(audit, FileAudit)
        audits.append(audit)
        for bucket, found in zip(buckets, ids, strict=True):
            assert isinstance(found, list)
            bucket += found
    return audits, *buckets


def _compared(part: str, expected: pa.ChunkedArray, found: pa.ChunkedArray, fingerprint: str) -> FileAudit:
    before, after = expected.to_pylist(), found.to_pylist()
    distinct = set(after)
    return FileAudit(
        part,
        len(before),
        len(after),
        lost=len(set(before) - distinct),
        unknown=len(distinct - set(before)),
        doubled=len(after) - len(distinct),
        in_order=before == after,
        fingerprint=fingerprint,
        digest=hashlib.sha256(json.dumps(after).encode()).hexdigest(),
    )


def _bucketed(ids: Sequence[str], num_buckets: int) -> list[list[str]]:
    """Ids by hash, so that an id is in the same bucket whatever file it came from."""
    if num_buckets == 1:
        return [list(ids)]
    places = np.array([zlib.crc32(i.encode()) % num_buckets for i in ids])
    strings = np.array(ids, object)
    return [strings[places == bucket].tolist() for bucket in range(num_buckets)]


def num_doubled(*ids_by_file: Sequence[str]) -> int:
    """How many of the ids of one bucket stand more than once, over all files."""
    ids = pa.chunked_array([pa.array(ids, pa.string()) for ids in ids_by_file])
    return len(ids) - int(pc.count_distinct(ids).as_py())
