"""Which of the same rows have other texts, labels or other columns: two tables, row beside row. Reads no file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.conversation import VALUES

TEXT = "text"
"""The column with a digest of the system text and the messages."""
OTHERS = ("source", "group", "predictor", "truncated", "tokens")


@dataclass
class LabelDiff:
    """Of one attribute of one column: how its values in b differ from those in a."""

    rows: int = 0
    """Rows with a difference of any kind."""
    answers: int = 0
    """Answers with both values, which differ."""
    total: float = 0.0
    """Of the absolute differences."""
    rated_in_one: int = 0
    """Answers with a value in one run only."""
    largest: float = 0.0
    """b - a."""
    largest_id: str = ""

    @property
    def mean(self) -> float:
        """Of the absolute differences, over the answers that differ."""
        return self.total / self.answers if self.answers else 0.0


@dataclass
class Ids:
    """How many rows, and the first of their ids."""

    limit: int
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, ids: pa.ChunkedArray | pa.Array) -> None:
        self.count += len(ids)
        self.first += ids.slice(0, max(0, self.limit - len(self.first))).to_pylist()


@dataclass
class AlignedDiff:
    """What differs among rows that both runs have."""

    texts: Ids
    tolerance: float
    relabeled: int = 0
    """Rows of the same text with any other label."""
    labels: dict[tuple[str, str], LabelDiff] = field(default_factory=dict)
    """(column, attribute) -> what differs."""
    others: Counter[str] = field(default_factory=Counter)
    """Column -> rows in which it differs."""

    def add(self, a: pa.Table, b: pa.Table, attributes: Sequence[str]) -> None:
        """Rows of the same ids, in the same order. Labels are compared where the text is the same."""
        a, b = a.combine_chunks(), b.combine_chunks()
        same = pc.equal(a.column(TEXT), b.column(TEXT))
        self.texts.add(a.column("id").filter(pc.invert(same)))
        a, b = a.filter(same).combine_chunks(), b.filter(same).combine_chunks()
        for name in OTHERS:
            self.others += Counter({name: int(pc.sum(pc.not_equal(a.column(name), b.column(name))).as_py() or 0)})
        changed_R = np.zeros(len(a), bool)
        for kind in VALUES:
            changed_R |= self._add_labels(kind, a, b, attributes)
        self.relabeled += int(changed_R.sum())

    def _add_labels(self, kind: str, a: pa.Table, b: pa.Table, attributes: Sequence[str]) -> np.ndarray:
        """Which rows have other labels in the column `kind`."""
        a_values, b_values = (table.column(kind).combine_chunks() for table in (a, b))
        rows_N = pc.list_parent_indices(a_values).to_numpy()
        assert len(rows_N) == len(b_values.flatten()), "the same text has as many answers"
        changed_R = np.zeros(len(a), bool)
        for name in attributes:
            a_N, b_N = (_numbers(values, name) for values in (a_values, b_values))
            delta_N = b_N - a_N
            differs_N = np.abs(delta_N) > self.tolerance
            one_N = np.isnan(a_N) != np.isnan(b_N)
            if not (differs_N | one_N).any():
                continue
            found = self.labels.setdefault((kind, name), LabelDiff())
            rows_of = np.unique(rows_N[differs_N | one_N])
            changed_R[rows_of] = True
            found.rows += len(rows_of)
            found.answers += int(differs_N.sum())
            found.total += float(np.abs(delta_N[differs_N]).sum())
            found.rated_in_one += int(one_N.sum())
            sizes_N = np.where(differs_N, np.abs(delta_N), 0)
            if sizes_N.size and sizes_N.max() > abs(found.largest):
                place = int(sizes_N.argmax())
                found.largest = float(delta_N[place])
                found.largest_id = a.column("id")[int(rows_N[place])].as_py()
        return changed_R


def _numbers(values: pa.Array, name: str) -> np.ndarray:
    """One value for each answer; NaN where there is none."""
    return pc.struct_field(values.flatten(), name).to_numpy(zero_copy_only=False).astype(float)
