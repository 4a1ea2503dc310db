"""Tokenised examples on storage, and the deterministic order in which training reads them.

Written once by Ray Data, then read by every rank alike: the order depends on ids, seed and epoch, never on timing.
Knows no model.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.packing import epoch_rows, steps_of
from data.tokens import Tokens

EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("reason", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),
        ("turn_ends", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),
    ]
)
"""`reason` names why a row could not become an example ("" = it did); `values` is [S, A] flattened, NaN = no label."""


@dataclass(frozen=True)
class Example:
    """One conversation to learn from: `ids_T`, `trained_T`, `turn_ends_S`, `values_SA`."""

    ids_T: np.ndarray
    trained_T: np.ndarray
    turn_ends_S: np.ndarray
    values_SA: np.ndarray


def example_row(id: str, group: str, tokens: Tokens | None, values_SA: np.ndarray, reason: str = "") -> dict[str, object]:
    """A row of EXAMPLE_SCHEMA; without `tokens` it only says why."""
    row: dict[str, object] = {"id": id, "group": group, "reason": reason, "ids": [], "trained": [], "turn_ends": [], "values": []}
    if tokens is not None:
        row |= {"ids": tokens.ids_T, "trained": tokens.trained_T, "turn_ends": tokens.turn_ends_S, "values": values_SA.ravel()}
    return row


def bucket(group: str, buckets: int) -> int:
    """The fold a group falls into: stable over runs, machines and row order."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % buckets


class Feed:
    """All examples of a stage, ordered by id, as compact arrays: 5 bytes a token, whatever the number of examples."""

    def __init__(self, tables: Iterable[pa.Table]):
        table = pa.concat_tables([t.select(EXAMPLE_SCHEMA.names).cast(EXAMPLE_SCHEMA) for t in tables] or [EXAMPLE_SCHEMA.empty_table()])
        reasons = table.column("reason").to_numpy()
        self.rejected = {str(r): int(n) for r, n in zip(*np.unique(reasons[reasons != ""].astype(str), return_counts=True), strict=True)}
        table = table.filter(pa.array(reasons == "")).sort_by("id").combine_chunks()
        self._groups = table.column("group").to_pylist()
        self._ids, self._trained, self._ends, self._values = (_Lists(table.column(c)) for c in ("ids", "trained", "turn_ends", "values"))
        self.lengths = self._ids.lengths
        """Tokens per example."""

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Example:
        ends, values = self._ends[index], self._values[index]
        values = values.reshape(len(ends), -1) if len(values) else np.zeros((len(ends), 0), np.float32)
        return Example(self._ids[index], self._trained[index], ends, values)

    def split(self, buckets: int, held_out: int, validation_buckets: int = 0) -> tuple[list[int], list[int]]:
        """Indices to train on and to validate on; whole groups are in one of them.

        The groups in bucket `held_out` of `buckets` (0 = hold out nothing) are validated on. With `validation_buckets`, they are in neither, and
        one of so many buckets of the other groups, drawn independently, is validated on: a step chosen by its loss on the very rows the model is
        judged by would flatter it.
        """
        held = [buckets > 0 and bucket(g, buckets) == held_out for g in self._groups]
        if not validation_buckets:
            return [i for i, h in enumerate(held) if not h], [i for i, h in enumerate(held) if h]
        checked = [bucket(f"validation/{g}", validation_buckets) == 0 for g in self._groups]
        return [i for i, h in enumerate(held) if not h and not checked[i]], [i for i, h in enumerate(held) if not h and checked[i]]

    def epoch(self, indices: list[int], row_tokens: int, rows_per_step: int, seed: int, epoch: int) -> Iterator[list[list[int]]]:
        """The optimizer steps of an epoch: lists of `rows_per_step` packed rows of example indices, every index exactly once."""
        rows = epoch_rows([int(self.lengths[i]) for i in indices], row_tokens, seed, epoch)
        yield from steps_of([[indices[j] for j in row] for row in rows], rows_per_step)


class _Lists:
    """A list column as one flat array and offsets."""

    def __init__(self, column: pa.ChunkedArray):
        array = column.combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) and array.num_chunks else array
        self.offsets = array.offsets.to_numpy() if len(array) else np.zeros(1, np.int32)
        self.flat = array.values.to_numpy(zero_copy_only=False) if len(array) else np.zeros(0)
        self.lengths = np.diff(self.offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]
