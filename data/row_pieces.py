"""A split of a source becomes a piece: its rows as Parquet, with its counters; and its rejected records as JSON lines.

Streamed: neither rows nor rejected records of more than a row group are held. Rows that come twice are both there
(`data.repeats`). Knows no Ray and no storage's layout but `data.shards`.
"""

import itertools
import json
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected, arrow_schema, to_table
from data.counters import COUNTERS_KEY, Counters
from data.errors import is_user_error
from data.lab import Lab, LabSettings
from data.scored_text import ScoredColumns
from data.shards import Output
from data.sources import limited, reader_of
from data.splits import Split
from data.storage import Storage
from data.unpacked import FileRange

ROWS_PER_PIECE_GROUP = 2048
"""Rows of a piece's row group: as many are held."""
REJECTED = "rejected: "
"""Begins the counter of a reason."""


@dataclass(frozen=True)
class SourceReader:
    """How the records of one source become rows."""

    name: str
    format: str
    schema: AttributeSchema
    columns: ScoredColumns | None = None
    lab: LabSettings | None = None
    shown: Mapping[str, str] = field(default_factory=dict)
    """Files whose name holds a credential -> what a rejected record says instead."""

    def rows(self, split: Split, within: FileRange | None) -> Iterator[Conversation | Rejected]:
        """The rows of the split, in order."""
        if self.lab:
            return limited(Lab(self.lab).rows(), split.limit)
        reader = reader_of(self.format, self.columns)
        rows = (row for file in split.files for row in reader(file, self.schema, self.name, within))
        return limited(rows, split.limit)


def write_split(split: Split, reader: SourceReader, output: Output) -> Counters:
    """Read the split, write its piece, which appears last; returns its counters.

    They are records `read`, `rows`, `answers`, `rated_answers`, rejected ones by reason, and the `lines` of a range.
    """
    counters, within = Counter[str](), split.range()
    with tempfile.TemporaryDirectory() as scratch:
        piece, rejected = os.path.join(scratch, "rows"), os.path.join(scratch, "rejected")
        schema = arrow_schema(reader.schema)
        with pq.ParquetWriter(piece, schema, compression="zstd") as writer, open(rejected, "wb") as file:
            kept: list[Conversation] = []
            for row in reader.rows(split, within):
                counters["read"] += 1
                if isinstance(row, Rejected):
                    file.write(_as_line(row, reader.shown))
                    counters[f"{REJECTED}{row.reason}"] += 1
                    continue
                _count(counters, row)
                kept.append(row)
                if len(kept) == ROWS_PER_PIECE_GROUP:
                    writer.write_table(to_table(kept, reader.schema))
                    kept = []
            if kept:
                writer.write_table(to_table(kept, reader.schema))
            counters["lines"] = within.num_lines if within else 0
            writer.add_key_value_metadata({COUNTERS_KEY.decode(): json.dumps(counters)})
        output.require_owner()
        if os.path.getsize(rejected):
            (output.pieces / split.rejected).put(rejected)
        (output.pieces / split.piece).put(piece)
    return dict(counters)


def counters_in(piece: Storage) -> Counters:
    """The counters that `write_split` left with its piece."""
    with piece.arrow_fs.open_input_file(piece.path) as file:
        found: Counters = json.loads(pq.read_metadata(file).metadata[COUNTERS_KEY])
    return found


def num_rejected(counters: Mapping[str, float]) -> int:
    """Rejected records of all reasons."""
    return int(sum(num for name, num in counters.items() if name.startswith(REJECTED)))


def split_row(number: int, split: Split) -> dict[str, int | bytes]:
    """A split as a row of Ray Data; Arrow's texts cannot hold every name of a file."""
    return {"number": number, "split": pickle.dumps(split)}


def write_split_row(batch: pa.Table, readers: Sequence[SourceReader], output: Output) -> pa.Table:
    """A row of `split_row` -> its number and counters, or a failure that a person can fix (as in `data.operators`)."""
    assert len(batch) == 1, f"a split travels alone, but {len(batch)} came together: batch_size must be 1"
    split, counters, failure = pickle.loads(batch.column("split")[0].as_py()), Counters(), ""
    try:
        counters = write_split(split, readers[split.source], output)
    except Exception as error:
        if not is_user_error(error):
            raise
        failure = str(error)
        if isinstance(error, FileNotFoundError):
            failure += "; tasks on every node read the sources: put them where all nodes see them, such as s3://"
    return pa.table({"number": batch.column("number"), "counters": [json.dumps(counters)], "failure": [failure]})


def _count(counters: Counter[str], row: Conversation) -> None:
    counters["rows"] += 1
    counters["answers"] += row.num_answers
    counters["rated_answers"] += sum(bool(values) for values in row.human)


def _as_line(rejected: Rejected, shown: Mapping[str, str]) -> bytes:
    # Half surrogates, of names that are no UTF-8, become JSON's own escapes.
    record = vars(rejected) | {"file": shown.get(rejected.file, rejected.file)}
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


@dataclass(frozen=True)
class RejectedLines:
    """Lines [skip, skip + num) of a split's rejected records."""

    file: str
    skip: int
    num: int
    lines_before: int
    """To be added to the number of each line: those of the file before the split."""


def write_rejected(name: str, pieces: Sequence[RejectedLines], folder: Storage, output: Output) -> None:
    """One file of rejected records, with the numbers of lines that they have in their files."""
    found: list[bytes] = []
    for piece in pieces:
        with output.pieces.fs.open((output.pieces / piece.file).path, "rb") as file:
            lines = itertools.islice(file, piece.skip, piece.skip + piece.num)
            found += [_moved(line, piece.lines_before) for line in lines]
    output.require_owner()
    (folder / name).write_bytes(b"".join(found))


def _moved(line: bytes, lines_before: int) -> bytes:
    if not lines_before:
        return line
    record = json.loads(line)
    record["line"] += lines_before
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
