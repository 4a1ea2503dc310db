"""The parts of stage `rows`: the rows of all pieces in order, without repeats, cut every so many rows. Knows no Ray.

A part is a function of the input alone: neither splits nor groups of tasks show in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from data.repeats import Changes, RowSlice
from data.shards import Output, row_groups, write_part


@dataclass(frozen=True)
class RowGroup:
    """Neighboring rows that one task looks at."""

    number: int
    slices: tuple[RowSlice, ...]
    kept_before: int = 0
    """Rows before it that stay."""
    num_kept: int = 0

    @property
    def kept_end(self) -> int:
        return self.kept_before + self.num_kept


def part_name(number: int, num_parts: int) -> str:
    """Names sort as numbers do."""
    return f"part-{number:0{max(5, len(str(num_parts - 1)))}d}.parquet"


def write_parts(
    groups: Sequence[RowGroup],
    removed: Sequence[str],
    num_rows: int,
    rows_per_part: int,
    schema: pa.Schema,
    resumed: bool,
    output: Output,
) -> int:
    """Write the parts that begin in the first of `groups`; the others have what its last part lacks.

    `num_rows`: of all parts. If the stage is `resumed`, parts with its fingerprint stay. Returns the rows of its parts.
    """
    first, last = parts_of(groups[0], rows_per_part)
    names = [part_name(number, -(-num_rows // rows_per_part)) for number in range(first, last)]
    if resumed and all(output.finished_part(name) is not None for name in names):
        return max(0, min(last * rows_per_part, groups[-1].kept_end) - first * rows_per_part)
    rows = _cut(_rows(groups, removed, output), first * rows_per_part - groups[0].kept_before, rows_per_part)
    written = 0
    for name, table in zip(names, rows, strict=False):
        write_part(name, [table], schema, output)
        written += len(table)
    return written


def parts_of(group: RowGroup, rows_per_part: int) -> tuple[int, int]:
    """The numbers [first, last) of the parts whose first row is in the group."""
    return -(-group.kept_before // rows_per_part), -(-group.kept_end // rows_per_part)


def _rows(groups: Sequence[RowGroup], removed: Sequence[str], output: Output) -> Iterator[pa.Table]:
    for group in groups:
        changes = Changes(group.number, removed, output)
        for slice in group.slices:
            position = slice.position
            for table in row_groups(slice.uri, slice.start, slice.stop):
                yield changes.applied(table, position)
                position += len(table)


def _cut(tables: Iterator[pa.Table], skip: int, rows: int) -> Iterator[pa.Table]:
    """The rows after the first `skip`, in tables of `rows`; the last may be shorter."""
    held: list[pa.Table] = []
    num_held = 0
    for table in tables:
        dropped = min(skip, len(table))
        skip -= dropped
        held.append(table.slice(dropped))
        num_held += len(held[-1])
        while num_held >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows).combine_chunks()
            held, num_held = [whole.slice(rows)], num_held - rows
    if num_held:
        yield pa.concat_tables(held).combine_chunks()
