"""Rows that came more than once with ratings: the mean of several raters, and how far they are apart.

A row that comes again with the very same ratings is a duplicate; with others, each time is one rater, and the mean
counts. What came again waits on disk until all rows are read, so that memory does not grow with it. Knows no format.
"""

import itertools
import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.attributes import Values
from data.conversation import Conversation

Rating = tuple[int, str]
"""Which answer of the row, and the attribute."""


@dataclass
class RaterCounts:
    """What came of the repeated rows of one source."""

    duplicates: int = 0
    """Rows that said nothing new."""
    merged: int = 0
    """Rows that became one more rater of an earlier row."""
    newly_rated: int = 0
    """Answers that have a rating only by a later row."""
    answers: int = 0
    """Answers that more than one rater rated."""
    _deviations: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, tally: "Tally") -> None:
        spread = tally.spread()
        self.answers += len({answer for answer, _ in spread})
        for (_, name), deviation in spread.items():
            sums = self._deviations[name]
            sums[0] += deviation
            sums[1] += 1

    def spread(self) -> dict[str, float]:
        """The mean over answers of the raters' standard deviation, by attribute."""
        return {name: round(total / num, 4) for name, (total, num) in self._deviations.items()}


@dataclass
class Tally:
    """Sums over the raters of one row."""

    num: Counter[Rating] = field(default_factory=Counter)
    total: defaultdict[Rating, float] = field(default_factory=lambda: defaultdict(float))
    squares: defaultdict[Rating, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, human: Sequence[Values]) -> None:
        for answer, values in enumerate(human):
            for name, value in values.items():
                self.num[answer, name] += 1
                self.total[answer, name] += value
                self.squares[answer, name] += value * value

    def means(self, num_answers: int) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in range(num_answers)]
        for (answer, name), num in self.num.items():
            found[answer][name] = self.total[answer, name] / num
        return found

    def spread(self) -> dict[Rating, float]:
        """The standard deviation (n - 1) of what more than one rater rated."""
        return {
            key: math.sqrt(max(0.0, self.squares[key] - self.total[key] ** 2 / num) / (num - 1))
            for key, num in self.num.items()
            if num > 1
        }


class RepeatedRows:
    """The ratings of rows that came again, by the part their row is in. A context: its file goes with it."""

    def __init__(self, path: str):
        self._base = sqlite3.connect(path, isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; "
            "CREATE TABLE again (part INTEGER, id TEXT, source TEXT, human TEXT); BEGIN;"
        )
        self.counts: defaultdict[str, RaterCounts] = defaultdict(RaterCounts)

    def close(self) -> None:
        self._base.close()

    def add(self, part: int, source: str, row: Conversation) -> None:
        """Note a row whose id was seen before, in part `part`; one without ratings is a duplicate at once."""
        if any(row.human):
            human = json.dumps([_stored(values) for values in row.human])
            self._base.execute("INSERT INTO again VALUES (?, ?, ?, ?)", (part, row.id, source, human))
        else:
            self.counts[source].duplicates += 1

    def parts(self) -> list[int]:
        """The parts with rows that came again."""
        return [part for (part,) in self._base.execute("SELECT DISTINCT part FROM again ORDER BY part")]

    def merged(self, part: int, rows: Iterable[Conversation]) -> list[Conversation] | None:
        """The rows of the part with the means of their raters; None if all that came again were duplicates."""
        found = {row.id: row for row in rows}
        query = "SELECT id, source, human FROM again WHERE part = ? ORDER BY id, rowid"
        again = self._base.execute(query, (part,))
        changed = False
        for id, others in itertools.groupby(again, key=lambda other: str(other[0])):
            row = self._merged(found[id], ((source, json.loads(human)) for _, source, human in others))
            changed |= row is not found[id]
            found[id] = row
        return list(found.values()) if changed else None

    def _merged(self, row: Conversation, others: Iterator[tuple[str, list[Values]]]) -> Conversation:
        first = [_stored(values) for values in row.human] or [{}] * row.num_answers
        tally, sources, differ = Tally(), Counter[str](), False
        tally.add(first)
        for source, human in others:
            sources[source] += 1
            if len(human) == len(first):
                differ |= human != first
                tally.add(human)
        if not differ:
            for source, num in sources.items():
                self.counts[source].duplicates += num
            return row
        for source, num in sources.items():
            self.counts[source].merged += num
        means = tally.means(row.num_answers)
        counts = self.counts[next(iter(sources))]
        counts.newly_rated += sum(bool(mean) and not old for mean, old in zip(means, first, strict=True))
        counts.add(tally)
        return row.with_human(means)


def _stored(values: Mapping[str, float]) -> dict[str, float]:
    """As a row's file holds them, so that the same rating compares equal."""
    return {name: float(np.float32(value)) for name, value in values.items()}
