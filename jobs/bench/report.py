"""What every bench shares: its type, the clock, the table, the machine. Knows nothing of what is measured."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data.errors import UserError
from data.record import Record
from jobs.runner.stage import log

T = TypeVar("T")


class Disagreement(UserError):
    """The two sides of a bench did not compute the same thing, so that no ratio of theirs means anything."""


@dataclass(frozen=True)
class Outcome:
    """What a bench found."""

    ratios: dict[str, float]
    """Names are fixed, so that ratios can be compared over time."""
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One bench: what it is about, in a sentence; its settings; and how it runs."""

    about: str
    settings: type[Record]
    run: Callable[[Any], Outcome]


def by_turns(ways: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """The result of each way in each round; a way gets the round's number.

    Every other round runs the ways in reverse order, so that a drift of the machine hits all of them.
    """
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in [*ways] if number % 2 == 0 else [*ways][::-1]:
            found[name].append(ways[name](number))
        log(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {given[-1]}" for name, given in found.items()))
    return found


def cpu_seconds_by_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this process for each way in each round."""

    def timed(way: Callable[[], object], _: int) -> float:
        started = time.process_time()
        way()
        return round(time.process_time() - started, 3)

    return by_turns({name: partial(timed, way) for name, way in ways.items()}, rounds)


def ratio_of(values: Mapping[str, Sequence[float]], below: str, above: str) -> float:
    """Median over the rounds of `above` / `below`; in a round both met the same machine."""
    return round(statistics.median(a / b for a, b in zip(values[above], values[below], strict=True)), 3)


def growth(runs: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> float:
    """How much larger the second run is than the first, in the metric of `names` that grew most."""
    small, large = runs.values()
    return round(max(large[name] / small[name] for name in names), 3)


def require_equal(difference: float, limit: float, sides: str) -> None:
    """Raise Disagreement if the largest difference of two sides is above `limit`."""
    if not difference <= limit:  # NaN is no agreement
        raise Disagreement(
            f"{sides}: scores differ by {difference:.2e}, allowed is {limit:.0e}: "
            "one of them is wrong, so there is nothing to compare"
        )


def print_table(header: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    """Columns as wide as they need; the first is text, the others numbers."""
    cells = [header, *(tuple(str(c) for c in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        log("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def machine() -> str:
    """Processor, cores this process may use, and the versions that metrics depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "ray"))
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, {versions}"
