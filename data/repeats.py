"""Rows whose id was there before: found by a shuffle of ids, without their texts. Knows no Ray.

`keys` sends each row's id, place and ratings to a bucket by the id's hash, so that equal ids meet; `find_repeats`
decides in a bucket: the first row in the order of the input stays, later raters of it become its mean (`data.raters`),
and all others go. What goes lies in a file of the bucket, in a batch for each group of neighboring rows, for whoever
writes that group. No step holds more than one bucket, or one group; a row without ratings that is there a million times
is sent once from each group.
"""

import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.attributes import Values
from data.raters import RepeatCounts, Tally
from data.shards import Output, row_groups

COLUMNS = ("id", "source", "human")


@dataclass(frozen=True)
class RowSlice:
    """Rows [start, stop) of the piece at `uri`."""

    uri: str
    start: int
    stop: int
    position: int
    """Place of the first one among all rows of the run."""
    source: int
    """Which source of the run they were read from."""

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


@dataclass
class Repeats:
    """What one bucket found; a few bytes for each group and source."""

    removed: Sequence[int]
    """Of each group, how many rows go."""
    counts: dict[int, RepeatCounts] = field(default_factory=dict)
    """By source."""
    names: set[str] = field(default_factory=set)
    """The `source` of rows that stay."""


def keys(
    group: int, slices: Sequence[RowSlice], num_buckets: int, output: Output
) -> tuple[dict[int, RepeatCounts] | pa.Table, ...]:
    """Columns position, origin (the source's number), id, source and human of the rows, a table for each bucket.

    Before them the counts of duplicates that the group alone shows: they are in its own file and in no table.
    """
    table = pa.concat_tables([_keys(slice) for slice in slices]).combine_chunks()
    goes = _repeats_unrated(table)
    gone = table.filter(pa.array(goes))
    answers = pc.list_value_length(gone.column("human")).to_pylist()
    counts: defaultdict[int, RepeatCounts] = defaultdict(RepeatCounts)
    for origin, num_answers in zip(gone.column("origin").to_pylist(), answers, strict=True):
        counts[origin].add(RepeatCounts(rows=1, answers=num_answers, duplicates=1))
    changes: list[Change] = [(position, None) for position in gone.column("position").to_pylist()]
    write_changes(own_name(group), changes, table.schema.field("human"), [0], output)
    table = table.filter(pa.array(~goes))
    return dict(counts), *in_buckets(table, table.column("id").to_pylist(), num_buckets)


def in_buckets(table: pa.Table, ids: Sequence[str | bytes], num_buckets: int) -> list[pa.Table]:
    """The rows of each bucket, by a hash of their ids."""
    if num_buckets == 1:
        return [table]
    places = np.array([zlib.crc32(id.encode() if isinstance(id, str) else id) % num_buckets for id in ids], np.int64)
    return [table.take(np.flatnonzero(places == bucket)) for bucket in range(num_buckets)]


def _repeats_unrated(table: pa.Table) -> np.ndarray:
    """Of each row: is it without ratings, and an earlier one of the table has its id?"""
    first = np.zeros(len(table), bool)
    first[first_places(table.column("id"))[1]] = True
    human = table.column("human").combine_chunks()
    values = human.flatten()
    rated = np.zeros(len(values), bool)
    for place in range(values.type.num_fields):
        rated |= ~np.isnan(values.field(place).to_numpy(zero_copy_only=False))
    rows = np.repeat(np.arange(len(table)), pc.list_value_length(human).to_numpy())
    mask: np.ndarray = ~first & (np.bincount(rows[rated], minlength=len(table)) == 0)
    return mask


def first_places(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each value of the column, equal for equal ones; and where each of them is first."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    return codes, np.unique(codes, return_index=True)[1]


def _keys(slice: RowSlice) -> pa.Table:
    table = pa.concat_tables(row_groups(slice.uri, slice.start, slice.stop, COLUMNS))
    positions = np.arange(slice.position, slice.position + len(table), dtype=np.int64)
    table = table.replace_schema_metadata(None).add_column(0, "position", pa.array(positions))
    return table.add_column(1, "origin", pa.array(np.full(len(table), slice.source, np.int32)))


def own_name(group: int) -> str:
    """The file of what goes from a group because of its own rows."""
    return f"removed-own-{group:06d}.arrow"


def removed_name(bucket: int, num_buckets: int) -> str:
    """The file of what goes from a bucket."""
    return f"removed-{bucket:06d}-of-{num_buckets:06d}.arrow"


def find_repeats(name: str, starts: Sequence[int], output: Output, *tables: pa.Table) -> Repeats:
    """Write the file `name` of what goes from a bucket; `starts`: the position of each group's first row."""
    table = pa.concat_tables(tables).combine_chunks()
    changes, found = _changes(table)
    found.removed = write_changes(name, changes, table.schema.field("human"), starts, output)
    return found


Change = tuple[int, list[dict[str, float]] | None]
"""A row's position, and its new ratings; None: it goes."""


def write_changes(
    name: str, changes: Sequence[Change], human: pa.Field, starts: Sequence[int], output: Output
) -> list[int]:
    """A file with a batch of changes for each group, which `Changes` reads; how many rows go from each group."""
    positions = np.array([position for position, _ in changes], np.int64)
    order = np.argsort(positions)
    ratings = [changes[place][1] for place in order]
    bounds = np.searchsorted(positions[order], [*starts, np.iinfo(np.int64).max])
    schema = pa.schema([pa.field("position", pa.int64()), human])
    sink, removed = pa.BufferOutputStream(), []
    with pa.ipc.new_file(sink, schema) as writer:
        for start, stop in itertools.pairwise(bounds.tolist()):
            removed.append(sum(values is None for values in ratings[start:stop]))
            columns = [pa.array(positions[order[start:stop]]), pa.array(ratings[start:stop], human.type)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    output.require_owner()
    (output.pieces / name).write_bytes(sink.getvalue().to_pybytes())
    return removed


def _changes(table: pa.Table) -> tuple[list[Change], Repeats]:
    """The changes of a bucket, whose rows come in order. Only rows that repeat become Python's objects."""
    codes, first = first_places(table.column("id"))
    found = Repeats([], names=set(table.column("source").take(first).unique().to_pylist()))
    repeated: np.ndarray = np.flatnonzero(np.bincount(codes, minlength=len(first))[codes] > 1)
    by_id: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.take(repeated).to_pylist():
        by_id[row["id"]].append(row)
    counts: defaultdict[int, RepeatCounts] = defaultdict(RepeatCounts)
    changes: list[Change] = []
    for rows in by_id.values():
        changes += [(row["position"], None) for row in rows[1:]]
        if (means := _merged(rows, counts)) is not None:
            changes.append((rows[0]["position"], means))
    found.counts = dict(counts)
    return changes, found


def _merged(rows: Sequence[dict[str, Any]], counts: defaultdict[int, RepeatCounts]) -> list[dict[str, float]] | None:
    """The ratings of the first row with those of its later raters; None if they say nothing new."""
    first, *others = [[_rated(values) for values in row["human"]] for row in rows]
    raters: list[tuple[RepeatCounts, list[Values]]] = []
    for row, human in zip(rows[1:], others, strict=True):
        count = counts[row["origin"]]
        count.rows += 1
        count.answers += len(human)
        count.rated_answers += sum(map(bool, human))
        if any(human):
            raters.append((count, human))
        else:
            count.duplicates += 1
    fitting = [human for _, human in raters if len(human) == len(first)]
    if all(human == first for human in fitting):
        for count, _ in raters:
            count.duplicates += 1
        return None
    tally = Tally()
    for human in (first, *fitting):
        tally.add(human)
    for count, _ in raters:
        count.merged += 1
    means = tally.means(len(first))
    raters[0][0].newly_rated += sum(bool(mean) and not old for mean, old in zip(means, first, strict=True))
    raters[0][0].add_tally(tally)
    names = rows[0]["human"][0].keys()
    return [{name: mean.get(name, np.nan) for name in names} for mean in means]


def _rated(values: dict[str, float | None]) -> Values:
    return {name: value for name, value in values.items() if value is not None and value == value}


class Changes:
    """What changes in one group of rows: by itself, and from the files of all buckets."""

    def __init__(self, group: int, names: Sequence[str], output: Output):
        table = pa.concat_tables(_batches(group, names, output)).combine_chunks()
        goes = table.column("human").is_null().to_numpy()
        self.removed = np.unique(table.column("position").to_numpy()[goes])
        """Positions, sorted."""
        rated = table.filter(pa.array(~goes))
        self._human = dict(zip(rated.column("position").to_pylist(), rated.column("human").to_pylist(), strict=True))
        self._rated = np.array(sorted(self._human), np.int64)

    def staying(self, position: int, num_rows: int) -> np.ndarray:
        """Of the rows from `position` on, which stay."""
        low, high = np.searchsorted(self.removed, (position, position + num_rows))
        stays = np.ones(num_rows, bool)
        stays[self.removed[low:high] - position] = False
        return stays

    def with_ratings(self, table: pa.Table, position: int) -> pa.Table:
        """Rows from `position` on with their new ratings."""
        low, high = np.searchsorted(self._rated, (position, position + len(table)))
        if low == high:
            return table
        column = table.schema.get_field_index("human")
        human = table.column(column).to_pylist()
        for place in self._rated[low:high].tolist():
            human[place - position] = self._human[place]
        field = table.schema.field(column)
        return table.set_column(column, field, pa.array(human, field.type))

    def applied(self, table: pa.Table, position: int) -> pa.Table:
        """The same without those that go."""
        stays = self.staying(position, len(table))
        rated = self.with_ratings(table, position)
        return rated if stays.all() else rated.filter(pa.array(stays))


def _batches(group: int, names: Sequence[str], output: Output) -> Iterator[pa.Table]:
    fs = output.pieces.arrow_fs
    for name, batch in ((own_name(group), 0), *((name, group) for name in names)):
        with fs.open_input_file((output.pieces / name).path) as stream, pa.ipc.open_file(stream) as file:
            yield pa.Table.from_batches([file.get_batch(batch)])
