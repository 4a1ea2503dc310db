"""The rows of all pieces, each id once, as the parts of stage `rows`: a shuffle of ids, then a task for some parts.

The driver holds a few numbers for each group of rows. `data.repeats` and `data.row_parts` say what is decided.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from data.near_repeats import band_keys, bands_of, count_near, find_near, write_signatures
from data.raters import RepeatCounts
from data.repeats import Repeats, RowSlice, find_repeats, keys, removed_name
from data.row_parts import RowGroup, parts_of, write_parts
from data.shards import Output
from jobs.pipelines.read_sources import ReadSplit
from jobs.pipelines.tasks import Calls


@dataclass(frozen=True)
class ShuffleSizes:
    """How much one task of the shuffle holds."""

    ids_per_bucket: int = 1_000_000
    """About 100 MB of ids and ratings."""
    rows_per_task: int = 50_000
    rows_per_task_and_bucket: int = 2_500
    """Ray keeps results under 100 KB in the driver's own memory: with many buckets a task reads more rows."""


@dataclass(frozen=True)
class UniqueRows:
    """What the parts hold."""

    rows: int
    counts: dict[int, RepeatCounts]
    """Of rows that came again, by the number of their source."""
    names: tuple[str, ...]
    """The `source` of the rows, sorted."""


class UniqueWriting:
    """The passes over one set of pieces."""

    def __init__(
        self,
        splits: Sequence[ReadSplit],
        schema: pa.Schema,
        output: Output,
        calls: Calls,
        sizes: ShuffleSizes = ShuffleSizes(),
    ):
        self._schema, self._output, self._calls, self._sizes = schema, output, calls, sizes
        num_rows = sum(read.rows for read in splits)
        self._num_buckets = self._buckets(num_rows)
        rows_per_group = max(sizes.rows_per_task, sizes.rows_per_task_and_bucket * self._num_buckets)
        self._groups = list(_groups(splits, rows_per_group, output))
        self._starts = [group.slices[0].position for group in self._groups]
        self._counts: dict[int, RepeatCounts] = {}
        self._changes: list[str] = []
        """Files of what goes and what changes."""

    def write(self, rows_per_part: int, near: Mapping[int, float]) -> UniqueRows:
        """Write the parts; `near`: sources whose rows go if they are so similar to an earlier one."""
        gone, names = self._find_repeats()
        if near:
            gone = gone + self._find_near(near)
        groups = _kept(self._groups, gone.tolist())
        written = self._write_parts(groups, rows_per_part)
        assert written == groups[-1].kept_end, f"{written} rows written of {groups[-1].kept_end} that stay"
        return UniqueRows(written, self._counts, tuple(sorted(names)))

    def _buckets(self, num_rows: int) -> int:
        return max(1, -(-num_rows // self._sizes.ids_per_bucket))

    def _find_repeats(self) -> tuple[np.ndarray, set[str]]:
        """How many rows go from each group, and the `source` of those that stay."""
        submit, number = self._calls.submit, self._num_buckets
        keyed = [submit(keys, g.number, g.slices, number, self._output, num_returns=1 + number) for g in self._groups]
        own, shuffled = [results[0] for results in keyed], [results[1:] for results in keyed]
        self._changes = [removed_name(bucket, number) for bucket in range(number)]
        found: list[Repeats] = self._calls.get(
            [
                submit(find_repeats, name, self._starts, self._output, *tables)[0]
                for name, tables in zip(self._changes, zip(*shuffled, strict=True), strict=True)
            ]
        )
        removed: np.ndarray = np.sum([bucket.removed for bucket in found], axis=0)
        for place, counts in enumerate(self._calls.get(own)):
            removed[place] += sum(count.rows for count in counts.values())
            self._add(counts)
        for bucket in found:
            self._add(bucket.counts)
        return removed, set().union(*(bucket.names for bucket in found))

    def _find_near(self, near: Mapping[int, float]) -> np.ndarray:
        """How many more rows go from each group: a shuffle for each band of the signatures."""
        submit, removed = self._calls.submit, self._changes
        gone = np.zeros(len(self._groups), np.int64)
        own = [group for group in self._groups if any(slice.source in near for slice in group.slices)]
        if not own:
            return gone
        signed = self._calls.get(
            [submit(write_signatures, g.number, g.slices, removed, near, self._output)[0] for g in own]
        )
        number = self._buckets(sum(signed))
        human, names = self._schema.field("human"), list[str]()
        for band in range(max(bands_of(threshold)[0] for threshold in near.values())):
            shuffled = [submit(band_keys, g.number, band, near, number, self._output, num_returns=number) for g in own]
            in_band = [f"near-{band:04d}-{removed_name(bucket, number)}" for bucket in range(number)]
            buckets = zip(in_band, zip(*shuffled, strict=True), strict=True)
            self._calls.get(
                [submit(find_near, name, near, self._starts, human, self._output, *t)[0] for name, t in buckets]
            )
            names += in_band
        counted = self._calls.get(
            [submit(count_near, g.number, g.slices, removed, names, self._output)[0] for g in own]
        )
        self._changes = removed + names
        for group, counts in zip(own, counted, strict=True):
            self._add(counts)
            gone[group.number] = sum(count.rows for count in counts.values())
        return gone

    def _add(self, counts: Mapping[int, RepeatCounts]) -> None:
        for source, count in counts.items():
            self._counts.setdefault(source, RepeatCounts()).add(count)

    def _write_parts(self, groups: Sequence[RowGroup], rows_per_part: int) -> int:
        """Returns how many rows the parts have."""
        resumed = bool(self._output.parts.names(".parquet"))
        fixed = (self._changes, groups[-1].kept_end, rows_per_part, self._schema, resumed, self._output)
        tasks = [self._calls.submit(write_parts, needed, *fixed)[0] for needed in _needed(groups, rows_per_part)]
        return sum(self._calls.get(tasks))


def _groups(splits: Sequence[ReadSplit], rows_per_group: int, output: Output) -> Iterator[RowGroup]:
    """Neighboring rows, `rows_per_group` of them; the last may have less."""
    slices: list[RowSlice] = []
    number, position, room = 0, 0, rows_per_group
    for read in splits:
        uri = (output.pieces / read.split.piece).uri
        start = 0
        while start < read.rows:
            stop = min(read.rows, start + room)
            slices.append(RowSlice(uri, start, stop, position, read.split.source))
            position, room, start = position + stop - start, room - (stop - start), stop
            if not room:
                yield RowGroup(number, tuple(slices))
                number, slices, room = number + 1, [], rows_per_group
    if slices:
        yield RowGroup(number, tuple(slices))


def _kept(groups: Sequence[RowGroup], removed: Sequence[int]) -> list[RowGroup]:
    """The groups with the number of rows that stay, before them and in them."""
    found, before = [], 0
    for group, gone in zip(groups, removed, strict=True):
        found.append(replace(group, kept_before=before, num_kept=sum(s.num_rows for s in group.slices) - gone))
        before = found[-1].kept_end
    return found


def _needed(groups: Sequence[RowGroup], rows_per_part: int) -> Iterator[list[RowGroup]]:
    """For each group in which a part begins: itself, and those after it that its last part needs."""
    for place, group in enumerate(groups):
        first, last = parts_of(group, rows_per_part)
        if first == last:
            continue
        stop = place + 1
        while stop < len(groups) and groups[stop - 1].kept_end < last * rows_per_part:
            stop += 1
        yield list(groups[place:stop])
