"""The rows of two folders of Parquet files: which are in one alone, and what differs among those that are in both.

Files with the same digest are equal unread. Of the others the files of one name are compared row by row if they have
the same ids in the same order. What is left is put into buckets by a hash of the id, in files on this machine, and
compared bucket by bucket: in memory are two parts, or two buckets of `bucket_rows`, without their texts.
"""

import itertools
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.diffing.labels import AlignedDiff, Ids
from jobs.diffing.parts import Part, compared_columns
from jobs.diffing.settings import DiffSettings

MOST_BUCKETS = 256
"""Each is an open file."""

Parts = Mapping[str, Part]


@dataclass
class RowsDiff:
    """How the rows of one folder differ between two runs."""

    num_rows: tuple[int, int]
    only: tuple[Ids, Ids]
    """Rows of a alone, and of b alone."""
    both: AlignedDiff
    moved: bool = False
    """Some rows are in other files or in another order."""
    attributes: list[str] = field(default_factory=list)
    """Attributes whose labels are compared."""

    @property
    def differs(self) -> bool:
        both = self.both
        return bool(self.moved or both.texts.count or both.relabeled or both.others)

    @property
    def reordered(self) -> bool:
        """The rows are the same, but in other files or in another order."""
        return self.moved and not (self.only[0].count or self.only[1].count)


def rows_diff(a: Parts, b: Parts, settings: DiffSettings) -> RowsDiff:
    """Compare all rows of two folders; only files whose digests differ are read."""
    limit = settings.shown
    found = RowsDiff(
        num_rows=(sum(p.num_rows for p in a.values()), sum(p.num_rows for p in b.values())),
        only=(Ids(limit), Ids(limit)),
        both=AlignedDiff(Ids(limit), settings.tolerance),
        attributes=shared_attributes(a, b),
    )
    rest_a, rest_b, found.moved = _unequal(a, b)
    most = max(sum(p.num_rows for p in rest.values()) for rest in (rest_a, rest_b))
    num_buckets = min(MOST_BUCKETS, -(-most // settings.bucket_rows))
    with tempfile.TemporaryDirectory() as folder:
        with ExitStack() as stack:
            sides = [stack.enter_context(_Buckets(Path(folder) / side, num_buckets)) for side in ("a", "b")]
            for name in sorted({*rest_a, *rest_b}):
                one, other = (compared_columns(rest[name]) if name in rest else None for rest in (rest_a, rest_b))
                if one is not None and other is not None and one.column("id").equals(other.column("id")):
                    found.both.add(one, other, found.attributes)
                    continue
                found.moved = True
                sides[0].add(one)
                sides[1].add(other)
        for one, other in zip(*(side.tables() for side in sides), strict=True):
            _add_bucket(found, one, other)
    return found


def shared_attributes(a: Parts, b: Parts) -> list[str]:
    """The attributes that both have on the same scale."""
    if not (a and b):
        return []
    scales = [
        {found.name: (found.low, found.high) for found in next(iter(parts.values())).attributes().attributes}
        for parts in (a, b)
    ]
    return [name for name, scale in scales[0].items() if scales[1].get(name) == scale]


def _unequal(a: Parts, b: Parts) -> tuple[Parts, Parts, bool]:
    """The parts of each side that the other has not; are there equal ones under another name?"""
    equal = {name for name in a.keys() & b.keys() if a[name].content and a[name].content == b[name].content}
    rest = [{name: part for name, part in side.items() if name not in equal} for side in (a, b)]
    counts = [Counter(part.content for part in side.values() if part.content) for side in rest]
    elsewhere = counts[0] & counts[1]
    for side in rest:
        left = elsewhere.copy()
        for name in [name for name, part in side.items() if left[part.content]]:
            left[side.pop(name).content] -= 1
    return rest[0], rest[1], bool(elsewhere)


def _add_bucket(found: RowsDiff, a: pa.Table | None, b: pa.Table | None) -> None:
    if a is None or b is None:
        for ids, table in zip(found.only, (a, b), strict=True):
            if table is not None:
                ids.add(table.column("id"))
        return
    places = pc.index_in(a.column("id"), value_set=b.column("id"))
    in_b = pc.is_valid(places)
    found.only[0].add(a.column("id").filter(pc.invert(in_b)))
    in_a = pc.is_in(b.column("id"), value_set=a.column("id"))
    found.only[1].add(b.column("id").filter(pc.invert(in_a)))
    found.both.add(a.filter(in_b), b.take(pc.drop_null(places)), found.attributes)


class _Buckets:
    """Rows of one side in files, by a hash of their ids: equal ids meet in the same bucket of both sides."""

    def __init__(self, folder: Path, num: int) -> None:
        folder.mkdir()
        self._files = [folder / str(number) for number in range(num)]
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def __enter__(self) -> "_Buckets":
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, table: pa.Table | None) -> None:
        if table is None:
            return
        hashes_R = np.array([zlib.crc32(id.encode()) for id in table.column("id").to_pylist()], np.int64)
        for number in range(len(self._files)):
            some = table.filter(pa.array(hashes_R % len(self._files) == number))
            if len(some):
                self._writer(number, table.schema).write_table(some)

    def _writer(self, number: int, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        if number not in self._writers:
            self._writers[number] = pa.ipc.new_stream(str(self._files[number]), schema)
        return self._writers[number]

    def tables(self) -> Iterator[pa.Table | None]:
        """One for each bucket, in order; None = no rows."""
        for file in self._files:
            yield _table(file) if file.exists() else None


def _table(file: Path) -> pa.Table:
    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
        return reader.read_all()


def folders_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Folder -> the names in it."""
    ordered = sorted(names, key=lambda name: name.rpartition("/")[0])
    return {folder: list(some) for folder, some in itertools.groupby(ordered, lambda name: name.rpartition("/")[0])}
