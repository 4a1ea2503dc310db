"""What live records come to: requested against measured values in production, and gaps by team, day and checkpoint.

Takes records one at a time; what it holds grows with the different values, not with the records. Knows no file and no
page.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

import numpy as np

from data.conversation import Rejected
from data.live_records import LiveRecord
from data.measures import NORMAL_95, slope, spearman
from data.record import Record
from jobs.evaluation.predictor_quality import plain

DIGITS = 3
"""Of measured values: finer than any predictor is."""
DRAWN, ASKED, BEST_OF, GUIDED = "drawn", "rated for its caller", "best_of", "guidance"
Interval = tuple[float | None, float | None]


class LiveCurve(Record):
    """One attribute on one scale: what prompts had of it, and what the answers have."""

    scale: tuple[int, int]
    requested: tuple[float, ...]
    """Distinct values in the prompts: requested by callers, or defaults."""
    counts: tuple[int, ...]
    """Answers at each of them."""
    measured: tuple[float | None, ...]
    """The mean at each of them."""
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    """The 95 % interval of these means, as if requests were independent; None for a single answer."""
    n: int
    named: int
    """Answers whose callers set it."""
    gap: float
    """Mean of |requested - measured|."""
    gap_interval: Interval
    spearman: float | None
    slope: float | None
    monotonic: bool


class LiveGroup(Record):
    """Answers that have something in common."""

    answers: int
    gaps: dict[str, float]
    """Curve -> mean of |requested - measured|."""
    counts: dict[str, int]
    """Curve -> answers with a measured value."""


class LiveMetrics(Record):
    """All of a report about production."""

    answers: int
    first: str
    last: str
    """When the first and the last answer were whole."""
    completion_tokens: float
    """Mean of an answer."""
    curves: dict[str, LiveCurve]
    """By attribute; by attribute and scale where several policies have different ones."""
    teams: dict[str, LiveGroup]
    days: dict[str, LiveGroup]
    checkpoints: dict[str, LiveGroup]
    """By model and policy."""
    kinds: dict[str, LiveGroup]
    """By how an answer came to be recorded, and how it was made; an answer may be in several."""
    bad_lines: int
    bad_reasons: dict[str, int]
    first_bad: str
    """Where the first one stands, and what is wrong; "" if there is none."""


Scale = tuple[str, int, int]
"""Attribute, lowest and highest value."""


class _Group:
    """Counts of answers, and of each attribute's gaps and their sum."""

    def __init__(self) -> None:
        self.answers = 0
        self.counts, self.sums = Counter[Scale](), defaultdict[Scale, float](float)


class LiveSums:
    """What is known of the records so far."""

    def __init__(self) -> None:
        self.bad = Counter[str]()
        self._first_bad = ""
        self._first, self._last = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
        self._answers = self._tokens = 0
        self._pairs = defaultdict[Scale, Counter[tuple[int, float]]](Counter)
        self._named = Counter[Scale]()
        self._groups = {kind: defaultdict[str, _Group](_Group) for kind in ("team", "day", "checkpoint", "kind")}

    def add(self, found: LiveRecord | Rejected) -> None:
        if isinstance(found, Rejected):
            self.bad[found.reason] += 1
            self._first_bad = self._first_bad or f"{found.file}, line {found.line}: {found.detail}"
            return
        self._first, self._last = min(self._first, found.time), max(self._last, found.time)
        self._answers += 1
        self._tokens += found.completion_tokens
        groups = [self._groups[kind][name] for kind, name in _groups_of(found)]
        for group in groups:
            group.answers += 1
        for name, value in found.measured.items():
            scale, requested, measured = (name, *found.scales[name]), found.effective[name], round(value, DIGITS)
            self._pairs[scale][requested, measured] += 1
            self._named[scale] += name in found.requested
            for group in groups:
                group.counts[scale] += 1
                group.sums[scale] += abs(requested - measured)

    def metrics(self) -> LiveMetrics | None:
        """None without a record."""
        if not self._answers:
            return None
        names = _names(self._pairs)
        groups = {
            kind: {name: _group(group, names) for name, group in sorted(found.items())}
            for kind, found in self._groups.items()
        }
        return LiveMetrics(
            answers=self._answers,
            first=self._first.astimezone(UTC).isoformat(),
            last=self._last.astimezone(UTC).isoformat(),
            completion_tokens=round(self._tokens / self._answers, 2),
            curves={name: _curve(scale, self._pairs[scale], self._named[scale]) for scale, name in names.items()},
            teams=groups["team"],
            days=groups["day"],
            checkpoints=groups["checkpoint"],
            kinds=groups["kind"],
            bad_lines=self.bad.total(),
            bad_reasons=dict(sorted(self.bad.items())),
            first_bad=self._first_bad,
        )


def live_sums(found: Iterable[LiveRecord | Rejected]) -> LiveSums:
    """Of all records."""
    sums = LiveSums()
    for record in found:
        sums.add(record)
    return sums


def _groups_of(record: LiveRecord) -> Iterator[tuple[str, str]]:
    yield "team", record.team
    yield "day", record.time.astimezone(UTC).date().isoformat()
    yield "checkpoint", f"{record.model}: {record.policy}"
    yield "kind", DRAWN if record.sampled else ASKED
    if record.best_of:
        yield "kind", BEST_OF
    if record.guidance != 1:
        yield "kind", GUIDED


def _names(scales: Iterable[Scale]) -> dict[Scale, str]:
    """Sorted by attribute; with the scale in the name of an attribute that has several."""
    found = sorted(scales)
    several = Counter(name for name, _, _ in found)
    return {(n, low, high): n if several[n] == 1 else f"{n}_{low}_to_{high}" for n, low, high in found}


def _group(group: _Group, names: Mapping[Scale, str]) -> LiveGroup:
    there = [(scale, name) for scale, name in names.items() if group.counts[scale]]
    return LiveGroup(
        answers=group.answers,
        gaps={name: round(group.sums[scale] / group.counts[scale], 4) for scale, name in there},
        counts={name: group.counts[scale] for scale, name in there},
    )


def _curve(scale: Scale, pairs: Counter[tuple[int, float]], named: int) -> LiveCurve:
    requested_P, measured_P = (np.array(side, float) for side in zip(*pairs, strict=True))
    count_P = np.array(list(pairs.values()))
    values = np.unique(requested_P)
    at = [_mean(measured_P[requested_P == value], count_P[requested_P == value]) for value in values]
    gap, low, high = _mean(np.abs(requested_P - measured_P), count_P)
    requested_N, measured_N = np.repeat(requested_P, count_P), np.repeat(measured_P, count_P)
    found = {
        "scale": scale[1:],
        "requested": values.tolist(),
        "counts": [int(count_P[requested_P == value].sum()) for value in values],
        "measured": [mean for mean, _, _ in at],
        "low": [low for _, low, _ in at],
        "high": [high for _, _, high in at],
        "n": int(count_P.sum()),
        "named": named,
        "gap": gap,
        "gap_interval": (low, high),
        "spearman": spearman(requested_N, measured_N),
        "slope": slope(requested_N, measured_N),
        "monotonic": all(b >= a for (a, _, _), (b, _, _) in itertools.pairwise(at)),
    }
    return LiveCurve.model_validate(plain(found))


def _mean(values_P: np.ndarray, count_P: np.ndarray) -> tuple[float, float, float]:
    """Of values that occur so often, with its 95 % interval: NaN for the ends where there is one value."""
    n = int(count_P.sum())
    mean = float((values_P * count_P).sum() / n)
    if n < 2:
        return mean, math.nan, math.nan
    half = NORMAL_95 * math.sqrt(float((count_P * (values_P - mean) ** 2).sum()) / (n - 1) / n)
    return mean, mean - half, mean + half
