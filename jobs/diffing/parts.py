"""The Parquet files of a folder by their footers, and of a file's rows only what is compared: ids, labels, a digest.

Rows are read a batch at a time. Knows no run.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes import AttributeSchema
from data.conversation import SCHEMA_KEY, VALUES, schema_of
from data.errors import UserError
from data.printable import printable
from data.row_digest import content_in
from data.storage import Storage
from data.uris import shown_uri
from jobs.diffing.labels import OTHERS, TEXT

BATCH_ROWS = 4096
AT_ONCE = 16


@dataclass(frozen=True)
class Part:
    """One Parquet file."""

    file: Storage
    num_rows: int
    content: str
    """The digest of its rows; "" = an older release wrote it."""
    has_rows: bool
    """Conversations, and no other table."""

    def attributes(self) -> AttributeSchema:
        return schema_of(pq.read_schema(self.file.path, filesystem=self.file.arrow_fs), shown_uri(self.file.uri))


def parts_of(folder: Storage, names: Sequence[str]) -> dict[str, Part]:
    """Name -> part. Raises UserError for a file that is no Parquet."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: _part(folder / name), names), strict=True))


def _part(file: Storage) -> Part:
    try:
        footer = pq.read_metadata(file.path, filesystem=file.arrow_fs)
    except pa.ArrowException as error:
        raise _broken(file, error) from None
    has_rows = SCHEMA_KEY in (footer.metadata or {}) and {"id", "messages"} <= {*footer.schema.to_arrow_schema().names}
    return Part(file, footer.num_rows, content_in(footer), has_rows)


def compared_columns(part: Part) -> pa.Table:
    """The part's rows, with a digest in place of their texts."""
    kept, file = ["id", *OTHERS, *VALUES], part.file
    try:
        with pq.ParquetFile(file.path, filesystem=file.arrow_fs) as parquet:
            schema = pa.schema([*map(parquet.schema_arrow.field, kept), (TEXT, pa.binary())])
            batches = parquet.iter_batches(BATCH_ROWS, columns=[*kept, "system", "messages"])
            return pa.Table.from_batches([_digested(batch, schema) for batch in batches], schema)
    except pa.ArrowException as error:
        raise _broken(file, error) from None


def _digested(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    digests = [hashlib.blake2b(text.as_buffer(), digest_size=16).digest() for text in _texts(batch)]
    columns = [*map(batch.column, schema.names[:-1]), pa.array(digests, pa.binary())]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _texts(batch: pa.RecordBatch) -> pa.Array:
    """All texts of each row as one, each with its length before it, so that other turns are another text."""
    messages = batch.column("messages")
    turns = _sized(pc.struct_field(messages.flatten(), "role"), pc.struct_field(messages.flatten(), "content"))
    joined = pc.binary_join(pa.ListArray.from_arrays(_offsets(messages), turns), "")
    return pc.binary_join_element_wise(_sized(batch.column("system")), joined, "")


def _sized(*texts: pa.Array) -> pa.Array:
    parts = [part for text in texts for part in (pc.cast(pc.binary_length(text), pa.string()), text)]
    return pc.binary_join_element_wise(*parts, " ")


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Of its entries in `lists.flatten()`."""
    return pa.array(np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]), pa.int32())


def _broken(file: Storage, error: Exception) -> UserError:
    why = printable(str(error), 150)
    return UserError(f"{shown_uri(file.uri)} is no whole Parquet file ({why}); run `python -m jobs.run` to mend it")
