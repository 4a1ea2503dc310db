"""Rows that came more than once with ratings: the mean of several raters, and how far they are apart.

A row that comes again with the very same ratings is a duplicate; with others, each time is one rater, and the mean
counts. Knows no format, and not where rows are (`data.repeats`).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.attributes import Values

Rating = tuple[int, str]
"""Which answer of the row, and the attribute."""
EXACT = 2**40
"""Deviations are summed as whole numbers of its inverse: then their sum does not depend on the order."""


@dataclass
class RepeatCounts:
    """What came of the repeated rows of one source."""

    rows: int = 0
    """Rows that came again, also nearly, and are not kept."""
    answers: int = 0
    """Theirs."""
    rated_answers: int = 0
    """Those of them that had ratings."""
    duplicates: int = 0
    """Rows that said nothing new."""
    merged: int = 0
    """Rows that became one more rater of an earlier row."""
    newly_rated: int = 0
    """Answers that have a rating only by a later row."""
    several_raters: int = 0
    """Answers that more than one rater rated."""
    near_duplicates: int = 0
    """Rows that are nearly an earlier one."""
    deviations: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Attribute -> the sum of the raters' standard deviations (in 1 / EXACT), and of how many."""

    def add_tally(self, tally: "Tally") -> None:
        spread = tally.spread()
        self.several_raters += len({answer for answer, _ in spread})
        for (_, name), deviation in spread.items():
            self._add_deviations(name, round(deviation * EXACT), 1)

    def add(self, other: "RepeatCounts") -> None:
        for name, value in vars(other).items():
            if name != "deviations":
                setattr(self, name, getattr(self, name) + value)
        for name, (total, num) in other.deviations.items():
            self._add_deviations(name, total, num)

    def _add_deviations(self, name: str, total: int, num: int) -> None:
        before = self.deviations.get(name, (0, 0))
        self.deviations[name] = (before[0] + total, before[1] + num)

    def spread(self) -> dict[str, float]:
        """The mean over answers of the raters' standard deviation, by attribute."""
        return {name: round(total / num / EXACT, 4) for name, (total, num) in sorted(self.deviations.items())}


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
