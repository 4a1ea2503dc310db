"""Two JSON values, leaf by leaf: which differ, as key.path: before -> after. Knows no stage."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.printable import printable

COSTS = ("_s", "seconds", "_bytes", "rows_before", "checkpoints")
"""Ends of the names of metrics that no two runs share: times, rates, memory. They are shown and count for nothing."""
SHOWN_VALUE = 60


@dataclass(frozen=True)
class Change:
    """One leaf; None = null, or not there."""

    path: str
    before: Any
    after: Any

    @property
    def is_cost(self) -> bool:
        return any(part.endswith(COSTS) for part in self.path.split("."))

    @property
    def arrow(self) -> str:
        """`2 -> 3`."""
        return f"{_shown(self.before)} -> {_shown(self.after)}"


def changes(before: Any, after: Any, tolerance: float = 0.0, path: str = "") -> Iterator[Change]:
    """The leaves that differ, in the order of their names; lists of one length are compared entry by entry."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        pairs = [(key, before.get(key), after.get(key)) for key in sorted({*before, *after})]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(place), *both) for place, both in enumerate(zip(before, after, strict=True))]
    else:
        if not _equal(before, after, tolerance):
            yield Change(path, before, after)
        return
    for key, one, other in pairs:
        yield from changes(one, other, tolerance, f"{path}.{key}" if path else key)


def _equal(before: Any, after: Any, tolerance: float) -> bool:
    if isinstance(before, int | float) and isinstance(after, int | float):
        return before == after or abs(before - after) <= tolerance or (math.isnan(before) and math.isnan(after))
    return bool(before == after)


def _shown(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False), SHOWN_VALUE)
