"""A tokenized conversation to learn from, many as compact arrays, and which to train on. Knows no order, no model."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.tokens import Tokens

EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("cut_turns", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("trained", pa.list_(pa.bool_())),
        ("turn_ends", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),
    ]
)
"""`reason`: why a row could not become an example ("" = it did). `cut_turns`: how many oldest answers did not fit.
`values`: [S, A] flattened, NaN = no label."""


EXAMPLE, LABEL = "example/", "label/"
"""Beginnings of the names of counters, see `counted` and `actors.training.examples.PredictorExamples`."""


def counted(table: pa.Table) -> dict[str, float]:
    """Counters of a table of EXAMPLE_SCHEMA: examples, those cut, and the others by reason."""
    found = {"cut": float(np.count_nonzero(table.column("cut_turns").to_numpy()))}
    for count in table.column("reason").value_counts().to_pylist():
        found[count["values"] or "examples"] = float(count["counts"])
    return {EXAMPLE + name: count for name, count in found.items()}


@dataclass(frozen=True)
class Example:
    """One conversation to learn from: `ids_T`, `trained_T`, `turn_ends_S`, `values_SA`."""

    ids_T: np.ndarray
    trained_T: np.ndarray
    turn_ends_S: np.ndarray
    values_SA: np.ndarray


@dataclass(frozen=True)
class Origin:
    """Where an example comes from."""

    id: str
    group: str
    source: str = ""


def example_row(origin: Origin, tokens: Tokens | None, values_SA: np.ndarray, reason: str = "") -> dict[str, object]:
    """A row of EXAMPLE_SCHEMA; without `tokens` it only has its reason."""
    row: dict[str, object] = {"ids": [], "trained": [], "turn_ends": [], "values": [], "cut_turns": 0}
    if tokens is not None:
        row = {"ids": tokens.ids_T, "trained": tokens.trained_T, "turn_ends": tokens.turn_ends_S}
        row |= {"values": values_SA.ravel(), "cut_turns": tokens.num_dropped_turns}
    return vars(origin) | {"reason": reason} | row


def digest_of(ids: Iterable[str]) -> int:
    """64 bits that depend on which ids these are and how often each is there, in whatever order."""
    return sum(int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "big") for i in ids) % 2**64


def buckets_for(share: float) -> int:
    """The number of buckets of groups of which one is `share` of all; 0 = hold out nothing."""
    return round(1 / share) if share else 0


def bucket(group: str, buckets: int) -> int:
    """The fold a group falls into: stable over runs, machines and row order."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % buckets


@dataclass(frozen=True)
class Split:
    """Which groups are trained on, validated on, and left unseen; whole groups are in one of the three.

    The groups in bucket `held_out` of `buckets` (0 = hold out nothing) are validated on. With `validation_buckets` they
    are left unseen, and one of so many buckets of the other groups, drawn independently, is validated on: a checkpoint
    chosen by its loss on the rows it is evaluated on would look too good.
    """

    buckets: int = 0
    held_out: int = 0
    validation_buckets: int = 0

    def trains(self, group: str) -> bool:
        return not self._held(group) and not self._checked(group)

    def validates(self, group: str) -> bool:
        return self._checked(group) and not self._held(group) if self.validation_buckets else self._held(group)

    @property
    def has_validation(self) -> bool:
        return bool(self.buckets or self.validation_buckets)

    def _held(self, group: str) -> bool:
        return self.buckets > 0 and bucket(group, self.buckets) == self.held_out

    def _checked(self, group: str) -> bool:
        return self.validation_buckets > 0 and bucket(f"validation/{group}", self.validation_buckets) == 0


class Examples:
    """Examples ordered by id, as compact arrays: 5 bytes a token. `rejected` counts the others, by reason."""

    def __init__(self, tables: Iterable[pa.Table]):
        table = pa.concat_tables(
            [t.select(EXAMPLE_SCHEMA.names).cast(EXAMPLE_SCHEMA) for t in tables] or [EXAMPLE_SCHEMA.empty_table()]
        )
        reasons = table.column("reason").to_numpy()
        self.rejected = {
            str(r): int(n)
            for r, n in zip(*np.unique(reasons[reasons != ""].astype(str), return_counts=True), strict=True)
        }
        table = table.filter(pa.array(reasons == "")).sort_by("id").combine_chunks()
        self.ids, self.groups, self.sources = (table.column(c).to_pylist() for c in ("id", "group", "source"))
        self._ids, self._trained, self._ends, self._values = (
            _Lists(table.column(c)) for c in ("ids", "trained", "turn_ends", "values")
        )
        self.lengths = self._ids.lengths
        """Tokens per example."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        ends, values = self._ends[index], self._values[index]
        values = values.reshape(len(ends), -1) if len(values) else np.zeros((len(ends), 0), np.float32)
        return Example(self._ids[index], self._trained[index], ends, values)


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
