"""Features of examples by id, in Parquet files of one folder: computed once, read by every fit on the same backbone.

Numbers in, numbers out: knows no model. A file appears whole or not at all, so a killed fit goes on with what is there.
"""

import hashlib
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.storage import Storage

SCHEMA = pa.schema([("id", pa.string()), ("features", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class FeatureStore:
    """The features of one backbone, read in one way (`kind`, a name without dots)."""

    folder: Storage
    kind: str
    width: int
    """Features of an answer."""

    def ids(self) -> set[str]:
        """The examples whose features are there."""
        found: set[str] = set()
        for path in self._files():
            table = pq.read_table(path, columns=["id"], filesystem=self.folder.arrow_fs)
            found.update(table.column("id").to_pylist())
        return found

    def add(self, ids: Sequence[str], features: Sequence[np.ndarray]) -> None:
        """Write one file with the features [S, F] of these examples; raises Unwritable."""
        arrays = pa.array([f.astype(np.float32).ravel() for f in features], SCHEMA.field("features").type)
        buffer = io.BytesIO()
        pq.write_table(pa.table([pa.array(ids, pa.string()), arrays], schema=SCHEMA), buffer, use_dictionary=False)
        name = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
        (self.folder / f"{self.kind}.{name}.parquet").write_bytes(buffer.getvalue())

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Each of the examples that is there, with its features [S, F]; one file at a time."""
        for path in self._files():
            table = pq.read_table(path, filesystem=self.folder.arrow_fs).combine_chunks()
            for id, features in zip(table.column("id").to_pylist(), table.column("features"), strict=True):
                if id in wanted:
                    yield id, features.values.to_numpy().reshape(-1, self.width)

    def _files(self) -> list[str]:
        if not self.folder.exists():
            return []
        return [p for p in self.folder.files(".parquet") if p.rsplit("/", 1)[-1].startswith(f"{self.kind}.")]
