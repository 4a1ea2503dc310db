"""Rated answers of all files as numbers, and the rows that a fold has not seen, by Ray tasks over the files.

Knows no model: the caller has the rows scored.
"""

from collections.abc import Iterable, Iterator, Sequence

from data.attributes import AttributeSchema
from data.conversation import Conversation, to_table
from data.examples import bucket, buckets_for
from data.lab import Lab, LabSettings
from data.ratings import Ratings, joined, ratings_of
from data.shards import Input
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.over_files import over_files, rows_in
from jobs.runner.stage import Run


def num_buckets(run: Run) -> int:
    """The number of buckets of groups of which the predictor holds one out; 0 = none."""
    return run.preset.predictor.folds or buckets_for(run.preset.predictor.validation_share)


def write_held_out(rows: Storage, schema: AttributeSchema, buckets: int, held_out: int, target: Storage) -> int:
    """The rated rows in bucket `held_out` of `buckets` into `target`, a file for each that has some; how many."""
    return sum(over_files("held-out rows", rows, _write_held_out, schema, buckets, held_out, target))


def _write_held_out(
    files: Sequence[Input], schema: AttributeSchema, buckets: int, held_out: int, target: Storage
) -> int:
    num_rows = 0
    for file in files:
        rows = list(rated_in(rows_in([file]), buckets, held_out))
        if rows:
            write_table(to_table(rows, schema), target, file.part)
        num_rows += len(rows)
    return num_rows


def rated_in(rows: Iterable[Conversation], buckets: int, held_out: int) -> Iterator[Conversation]:
    """The rated rows in bucket `held_out` of `buckets`, which `Split` keeps from training."""
    return (row for row in rows if any(row.human) and bucket(row.group, buckets) == held_out)


def ratings_in(rows: Storage, names: Sequence[str], buckets: int, lab: LabSettings | None) -> Ratings:
    """The numbers of all rated answers, see `ratings_of`; with the truth if the rows are the synthetic world's."""
    return joined(over_files("ratings", rows, _ratings_in, names, buckets, lab), len(names))


def _ratings_in(files: Sequence[Input], names: Sequence[str], buckets: int, lab: LabSettings | None) -> Ratings:
    return ratings_of(rows_in(files), names, buckets, Lab(lab).truth if lab else None)
