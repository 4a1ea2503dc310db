"""Examples that are read while they are still being written: a reader waits for its shard, not for the corpus.

They lie as `data.shards` leaves them: in pieces, then in a part. A row of input becomes one row of output, so that
slices of the input give every example's place in advance. Knows neither Ray nor the writer.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError
from data.shards import Output, Shard, read
from data.storage import Storage

POLL_S = 0.5


@dataclass(frozen=True)
class StreamingDataset:
    """A folder of parts that is being written, piece by piece of `piece_rows` rows."""

    output: Output
    piece_rows: int
    rows: Mapping[str, int]
    """Of each part, when it is whole."""

    @property
    def failed(self) -> Storage:
        """A mark: nothing more will come."""
        return Storage(f"{self.output.uri}.failed")

    def read(self, shard: Shard) -> pa.Table:
        """The rows of a slice of a part, as soon as they are there. Raises UserError if they will never be."""
        while True:
            # The part first: it is there before its pieces go.
            for found in (read, self._pieces):
                with contextlib.suppress(FileNotFoundError):
                    return found(shard)
            if self.failed.exists():
                raise UserError(
                    f"tokenizing ended before rows {shard.start:,} to {shard.stop:,} of {shard.part}; "
                    "its own message has the reason"
                )
            time.sleep(POLL_S)

    def _pieces(self, shard: Shard) -> pa.Table:
        """From the pieces that the slice touches; raises FileNotFoundError if one is missing."""
        first = shard.start // self.piece_rows * self.piece_rows
        stop = self.rows[shard.part]
        bounds = [(a, min(a + self.piece_rows, stop)) for a in range(first, shard.stop, self.piece_rows)]
        folder = self.output.pieces
        names = [Shard(shard.uri, shard.part, a, b).piece for a, b in bounds]
        tables = [pq.read_table((folder / name).path, filesystem=folder.arrow_fs) for name in names]
        rows = pa.concat_tables([t.replace_schema_metadata() for t in tables])
        return rows.slice(shard.start - first, shard.stop - shard.start)
