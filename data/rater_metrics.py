"""How far each rater agrees with people, how often it failed, and what brings its values onto people's scale.

All of it follows from sums, which travel with the rows (`data.counters`): no pass over the rows of its own.
"""

import math
from collections.abc import Mapping

import numpy as np

from data.calibration import MIN_PAIRS
from data.counters import Counters
from data.record import Record
from data.roster import Roster

MERGED = "merged"
"""Stands for a rater where several rate an attribute: their one value."""
PREFIX = "rater"
AGAIN = "rate_again"
"""Counter of answers that a rater failed to rate, but may rate tomorrow."""
VALUED = "valued/"
"""With an attribute: counter of the answers that have a value of it."""


class RaterMetrics(Record):
    """One rater's values of one attribute."""

    given: int
    """Answers that have one."""
    failed: dict[str, int] = {}
    """Answers that should have one, by reason."""
    rated_by_people: int = 0
    """Answers with a value of people as well; all below is about them. The predictor may have learned from them."""
    pearson: float | None = None
    """Correlation with people's values; None = too few, or all alike."""
    mean_absolute_gap: float | None = None
    """In points of the scale."""
    scale: float = 1.0
    """value -> scale * value + shift has the mean and the spread of people's values."""
    shift: float = 0.0

    @property
    def num_failed(self) -> int:
        return sum(self.failed.values())


class JudgeSpending(Record):
    """What a judge has taken in a run so far, earlier starts and stages included."""

    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the rater's prices; None = it has none."""

    def words(self) -> str:
        cost = "no prices are set" if self.cost is None else f"cost {self.cost:,.4f}"
        return f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens, {cost}"


def sums(rater: int | str, attribute: str, values_S: np.ndarray, human_S: np.ndarray) -> Counters:
    """The counters of a rater's values of one attribute, NaN = none, beside people's."""
    at = f"{PREFIX}/{rater}/{attribute}"
    both = ~(np.isnan(values_S) | np.isnan(human_S))
    v, h = values_S[both].astype(float), human_S[both].astype(float)
    found = {
        "n": both.sum(),
        "v": v.sum(),
        "h": h.sum(),
        "vv": v @ v,
        "hh": h @ h,
        "vh": v @ h,
        "gap": abs(v - h).sum(),
    }
    return {f"{at}/given": int((~np.isnan(values_S)).sum())} | {f"{at}/{k}": float(x) for k, x in found.items()}


def failure(rater: int, attribute: str, reason: str) -> str:
    """The counter of a failure."""
    return f"{PREFIX}/{rater}/{attribute}/failed/{reason}"


def rater_metrics(counters: Counters, roster: Roster) -> dict[str, dict[str, RaterMetrics]]:
    """Rater -> attribute -> metrics, from the counters of a pass; several raters' one value is that of MERGED."""
    found: dict[str, dict[str, RaterMetrics]] = {}
    for number, rater in enumerate(roster.all):
        found[rater.name] = {name: _metrics(counters, f"{PREFIX}/{number}/{name}") for name in rater.attributes}
    shared = [name for name in roster.schema.names if len(roster.of(name)) > 1]
    if shared:
        found[MERGED] = {name: _metrics(counters, f"{PREFIX}/{MERGED}/{name}") for name in shared}
    return found


def _metrics(counters: Counters, at: str) -> RaterMetrics:
    failed = {
        name.removeprefix(f"{at}/failed/"): int(n) for name, n in counters.items() if name.startswith(f"{at}/failed/")
    }
    n, v, h, vv, hh, vh, gap = (counters.get(f"{at}/{key}", 0.0) for key in ("n", "v", "h", "vv", "hh", "vh", "gap"))
    given = int(counters.get(f"{at}/given", 0))
    if not n:
        return RaterMetrics(given=given, failed=failed)
    # Rounding may leave a constant column a spread of its own.
    sd_v, sd_h = (math.sqrt(max(0.0, squares / n - (total / n) ** 2)) for squares, total in ((vv, v), (hh, h)))
    spread = min(sd_v, sd_h) > 1e-6 * (1 + abs(v / n))
    scale = sd_h / sd_v if n >= MIN_PAIRS and sd_v > 1e-6 * (1 + abs(v / n)) else 1.0
    return RaterMetrics(
        given=given,
        failed=failed,
        rated_by_people=int(n),
        pearson=round((vh / n - v / n * h / n) / (sd_v * sd_h), 4) if spread and n > 2 else None,
        mean_absolute_gap=round(gap / n, 4),
        scale=float(f"{scale:.6g}"),
        shift=float(f"{(h - scale * v) / n:.6g}") if n >= MIN_PAIRS else 0.0,
    )


def agreement_lines(metrics: Mapping[str, Mapping[str, RaterMetrics]]) -> list[str]:
    """A sentence for each attribute that several raters give: how far each, and their one value, agrees with people."""
    lines = []
    for name, together in metrics.get(MERGED, {}).items():
        alone = {who: of[name].pearson for who, of in metrics.items() if who != MERGED and name in of}
        every = {MERGED: together.pearson} | alone
        shown = ", ".join(f"{who} {'none' if r is None else f'{r:.2f}'}" for who, r in every.items())
        line = f"{name}: correlation with people's values: {shown}"
        best = max((r for r in alone.values() if r is not None), default=None)
        if best is not None and together.pearson is not None and together.pearson < best:
            line += "; merged agrees less with people than the best of them alone"
        lines.append(line)
    return lines
