"""A source as splits: what one task reads, files or a range of a large one. Knows no Ray, and not what records hold.

A split is a function of the listing and of `split_bytes` alone. Plain JSON lines are divided at bytes, and a line
belongs to the range it starts in; Parquet is divided at row groups; any other file is read by one task.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from data.parquet_rows import row_groups
from data.shards import FOOTERS_AT_ONCE
from data.source_files import SourceFiles
from data.sources import division_of
from data.unpacked import SOME_BEFORE, FileRange

MOST_FILES = 256
"""Files of a split: an object store takes tens of milliseconds for each, however small."""


@dataclass(frozen=True)
class Split:
    """Neighboring files of a source, or a range of one file."""

    source: int
    """Which source of the run."""
    number: int
    """Its place among the splits of the source."""
    files: tuple[str, ...] = ()
    """None: the synthetic world."""
    num_bytes: int = 0
    """Of the files as the listing says, packed or not."""
    start: int | None = None
    """Of the range: a byte, or a row group. None: whole files."""
    stop: int = 0
    before: int = 0
    """As in FileRange."""
    limit: int = 0
    """Rows after which reading ends; 0 = none."""

    @property
    def name(self) -> str:
        """Of its output."""
        first = f".first-{self.limit}" if self.limit else ""
        return f"{self.source:04d}-{self.number:07d}{first}"

    @property
    def piece(self) -> str:
        """Its rows."""
        return f"{self.name}.parquet"

    @property
    def rejected(self) -> str:
        """Its rejected records; there is no such file if there are none."""
        return f"{self.name}.rejected.jsonl"

    def range(self) -> FileRange | None:
        """A new range: it counts what is read."""
        return None if self.start is None else FileRange(self.start, self.stop, self.before)

    def limited_to(self, limit: int) -> "Split":
        """The same with another limit."""
        return replace(self, limit=limit)


def splits_of(source: int, format: str, found: SourceFiles, split_bytes: int) -> list[Split]:
    """The splits of a source's files, in order."""
    sizes = {file: int(found.listed[file].get("size") or 0) for file in found.files}
    large = [file for file in found.files if sizes[file] > split_bytes]
    grouped = [file for file in large if division_of(format, file) == "row groups"]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        ranges = dict(
            zip(grouped, pool.map(lambda file: _of_groups(row_groups(file), split_bytes), grouped), strict=True)
        )
    ranges |= {file: _of_bytes(sizes[file], split_bytes) for file in large if division_of(format, file) == "lines"}
    return [
        replace(split, source=source, number=number)
        for number, split in enumerate(_splits(found.files, sizes, ranges, split_bytes))
    ]


def is_small(splits: Iterable[Split], split_bytes: int) -> bool:
    """Are they all together no more than one split may be?"""
    splits = list(splits)
    return sum(s.num_bytes for s in splits) <= split_bytes and sum(len(s.files) for s in splits) <= MOST_FILES


Ranges = dict[str, list[Split]]


def _splits(files: Sequence[str], sizes: dict[str, int], ranges: Ranges, split_bytes: int) -> Iterator[Split]:
    together: list[str] = []
    num_bytes = 0
    for file in files:
        divided = ranges.get(file, [])
        too_many = num_bytes + sizes[file] > split_bytes or len(together) == MOST_FILES
        if together and (divided or too_many):
            yield Split(0, 0, tuple(together), num_bytes)
            together, num_bytes = [], 0
        if divided:
            yield from (replace(split, files=(file,)) for split in divided)
            continue
        together.append(file)
        num_bytes += sizes[file]
    if together:
        yield Split(0, 0, tuple(together), num_bytes)


def _of_bytes(size: int, split_bytes: int) -> list[Split]:
    return [
        Split(
            0, 0, (), min(split_bytes, size - start), start, min(start + split_bytes, size), SOME_BEFORE if start else 0
        )
        for start in range(0, size, split_bytes)
    ]


def _of_groups(groups: Sequence[tuple[int, int]], split_bytes: int) -> list[Split]:
    """Neighboring row groups, together no more than `split_bytes` unpacked unless one alone is."""
    found: list[Split] = []
    start = before = rows = num_bytes = 0
    for number, (num_rows, unpacked) in enumerate(groups):
        if num_bytes and num_bytes + unpacked > split_bytes:
            found.append(Split(0, 0, (), num_bytes, start, number, before))
            start, before, num_bytes = number, rows, 0
        num_bytes += unpacked
        rows += num_rows
    return [*found, Split(0, 0, (), num_bytes, start, len(groups), before)] if groups else []
