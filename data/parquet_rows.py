"""A Parquet file's rows, a batch at a time; a damaged file or row is Rejected with its place. Knows no column."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.conversation import Rejected
from data.errors import UserError
from data.printable import printable
from data.unpacked import DAMAGE, MAX_LINE_BYTES, MAX_RATIO, SHOWN_ERROR, Damaged, FileRange, is_damage, opened

PARQUET_BATCH_ROWS = 256
"""Keeps a batch of long conversations (some 10 kB each) within a few MB."""
FREE_BYTES = 64 * 2**20
"""Rows of fewer bytes may be any number of times their file's size: a page is unpacked as a whole."""

Record = Mapping[str, Any]
Require = Callable[[pa.Schema], None]


def parquet_rows(
    file: str, require: Require | None = None, within: FileRange | None = None
) -> Iterator[tuple[int, Record] | Rejected]:
    """The file's rows with their numbers from 1. `require` raises UserError to refuse an Arrow schema."""
    number = within.before if within else 0
    with opened(file) as stream:
        try:
            for batch in _batches(stream, require, within):
                yield from _rows(file, number, batch)
                number += batch.num_rows
        except UserError:
            raise
        except Damaged as error:
            yield Rejected(file, number, "broken_file", str(error))
        except (*DAMAGE, pa.ArrowException, MemoryError) as error:
            if not is_damage(error):
                raise
            what = printable(str(error), SHOWN_ERROR)
            yield Rejected(
                file, number, "broken_file", f"not a whole Parquet file after row {number} ({what}); fetch it again"
            )


def row_groups(file: str) -> list[tuple[int, int]]:
    """Rows and unpacked bytes of each row group; none of a file that cannot be read."""
    with opened(file) as stream:
        try:
            metadata = pq.read_metadata(stream)
        except (*DAMAGE, pa.ArrowException, MemoryError) as error:
            if not is_damage(error):
                raise
            return []  # who reads it says why
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [(group.num_rows, group.total_byte_size) for group in groups]


def _batches(stream: IO[bytes], require: Require | None, within: FileRange | None) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(stream)
    schema = parquet.schema_arrow
    if twice := [name for name, n in Counter(schema.names).items() if n > 1]:
        raise Damaged(f"column {printable(twice[0])!r} is there twice; leave one of them out")
    if require:
        require(schema)
    _require_modest(parquet.metadata, stream.seek(0, io.SEEK_END))
    groups = range(within.start, within.stop) if within else range(parquet.num_row_groups)
    yield from parquet.iter_batches(PARQUET_BATCH_ROWS, row_groups=list(groups))


def _require_modest(metadata: pq.FileMetaData, file_bytes: int) -> None:
    """Raises Damaged for rows that are few bytes in the file and very many in memory.

    Asks row groups only: pyarrow ends the process when it is asked for a column chunk whose statistics are damaged.
    """
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(number).total_byte_size for number in groups)
    if size > FREE_BYTES and size > MAX_RATIO * file_bytes:
        raise Damaged(
            f"its rows unpack to {size:,} bytes, over {MAX_RATIO} times its size; write it uncompressed if you trust it"
        )


def _rows(file: str, before: int, batch: pa.RecordBatch) -> Iterator[tuple[int, Record] | Rejected]:
    """The batch's rows; one by one only if the batch holds text that is no UTF-8, or may hold an overlong row."""
    if batch.nbytes <= MAX_LINE_BYTES:
        try:
            yield from enumerate(batch.to_pylist(), before + 1)
            return
        except UnicodeDecodeError:
            pass
    for place in range(batch.num_rows):
        one = batch.slice(place, 1)
        number = before + place + 1
        if one.nbytes > MAX_LINE_BYTES:
            yield Rejected(
                file,
                number,
                "overlong_line",
                f"the row has {one.nbytes:,} bytes, at most {MAX_LINE_BYTES:,} are allowed; split it or take it out",
            )
            continue
        try:
            yield number, one.to_pylist()[0]
        except UnicodeDecodeError as error:
            yield Rejected(file, number, "invalid_utf8", f"a text of the row is no UTF-8 ({_plain(error)})")


def _plain(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at {error.start}: {error.reason}"
