"""What a report reads from a run's rows: counts of each value, and answers at each requested value.

Parquet is streamed, a batch at a time: memory does not grow with the corpus. Knows no page.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes import AttributeSchema
from data.conversation import Conversation, from_table
from data.shards import Input
from data.storage import Storage
from jobs.pipelines.over_files import over_files

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Spread:
    """Of one attribute: the answers at each value of its scale, rounded and clipped as in a prompt, and the mean of
    the raw values."""

    counts: tuple[int, ...]
    mean: float | None


def batches(folder: Storage, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """All rows of the Parquet files below, in name order."""
    for name in folder.names(".parquet"):
        yield from _batches(folder / name, columns)


def _batches(file: Storage, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file.path, filesystem=file.arrow_fs) as parquet:
        yield from parquet.iter_batches(BATCH_ROWS, columns=columns)


def spreads(folder: Storage, kind: str, schema: AttributeSchema) -> dict[str, Spread]:
    """For each attribute that some answer has a value of; `kind` is "human" or "predicted"."""
    counts = {a.name: np.zeros(a.high - a.low + 1, np.int64) for a in schema.attributes}
    sums = dict.fromkeys(schema.names, 0.0)
    for some_counts, some_sums in over_files("labels", folder, _label_counts, kind, schema):
        for name in schema.names:
            counts[name] += some_counts[name]
            sums[name] += some_sums[name]
    return {
        name: Spread(tuple(found.tolist()), sums[name] / int(found.sum()))
        for name, found in counts.items()
        if found.sum()
    }


def _label_counts(
    files: Sequence[Input], kind: str, schema: AttributeSchema
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Of each attribute: its answers by value, and the sum of the raw values."""
    counts = {a.name: np.zeros(a.high - a.low + 1, np.int64) for a in schema.attributes}
    sums = dict.fromkeys(schema.names, 0.0)
    for batch in itertools.chain.from_iterable(_batches(Storage(file.uri), [kind]) for file in files):
        answers = pc.list_flatten(batch.column(kind))
        for attribute in schema.attributes:
            values_N = pc.struct_field(answers, attribute.name).to_numpy(zero_copy_only=False).astype(float)
            values_N = values_N[~np.isnan(values_N)]
            sums[attribute.name] += float(values_N.sum())
            places_N = np.clip(np.rint(values_N), attribute.low, attribute.high).astype(np.int64) - attribute.low
            counts[attribute.name] += np.bincount(places_N, minlength=attribute.high - attribute.low + 1)
    return counts, sums


def answers_by_value(
    folder: Storage, schema: AttributeSchema, num_questions: int
) -> dict[str, dict[str, list[Conversation]]]:
    """Attribute -> question -> its answers in order of the requested value, for the first questions in the order of
    the rows."""
    found: dict[str, dict[str, list[Conversation]]] = {name: {} for name in schema.names}
    for batch in batches(folder):
        # Python objects for answers to a single varied attribute only; the folder may hold others.
        varied = batch.filter(pc.is_in(batch.column("group"), pa.array(schema.names)))
        for row in from_table(varied):
            questions = found[row.group]
            if row.num_answers != 1 or not row.requested or row.group not in row.requested[-1]:
                continue
            question = row.messages[0].content
            if question in questions or len(questions) < num_questions:
                questions.setdefault(question, []).append(row)
    for name, questions in found.items():
        for rows in questions.values():
            rows.sort(key=lambda row: row.requested[-1][name])
    return {name: questions for name, questions in found.items() if questions}
