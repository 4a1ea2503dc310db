"""Stage `rows` as a plain loop in one process, from a dict of all ids: what the stage on a cluster must equal."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.conversation import Conversation, Rejected, from_table
from data.lab import LAB, Lab
from data.sources import read
from data.stage_metrics import RowsMetrics
from jobs.runner.stage import Run


@dataclass
class SerialRows:
    """What the loop found, in the order of the input."""

    rows: list[Conversation] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    spread: dict[str, dict[str, float]] = field(default_factory=dict)


def serial_rows(sources: Mapping[str, Iterable[Conversation | Rejected]]) -> SerialRows:
    """The rows of all sources, each id once; later raters are merged into the first row."""
    found, kept = SerialRows(), dict[str, Conversation]()
    again: defaultdict[str, list[tuple[str, Conversation]]] = defaultdict(list)
    for name, rows in sources.items():
        count = found.counts[name] = Counter()
        for row in rows:
            count["read"] += 1
            if isinstance(row, Rejected):
                found.rejected.append(row)
                count[f"rejected: {row.reason}"] += 1
            elif row.id in kept:
                again[row.id].append((name, row))
            else:
                kept[row.id] = row
                count["rows"] += 1
                count["answers"] += row.num_answers
                count["rated_answers"] += sum(map(bool, row.human))
    deviations: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for id, others in again.items():
        kept[id] = _merged(kept[id], others, found.counts, deviations)
    found.rows = list(kept.values())
    found.spread = {n: {a: statistics.fmean(v) for a, v in of.items()} for n, of in deviations.items()}
    return found


def _merged(
    first: Conversation,
    others: Sequence[tuple[str, Conversation]],
    counts: dict[str, Counter[str]],
    deviations: defaultdict[str, defaultdict[str, list[float]]],
) -> Conversation:
    for name, row in others:
        counts[name]["rated_answers"] += 0
        if not any(row.human):
            counts[name]["duplicate"] += 1
    rated = [(name, stored(row)) for name, row in others if any(row.human)]
    mine = stored(first)
    raters = [mine, *(human for _, human in rated if len(human) == len(mine))]
    if all(human == mine for human in raters):
        for name, _ in rated:
            counts[name]["duplicate"] += 1
        return first
    for name, _ in rated:
        counts[name]["merged"] += 1
    leader, means, several = rated[0][0], [], 0
    for answer in range(len(mine)):
        values: defaultdict[str, list[float]] = defaultdict(list)
        for human in raters:
            for attribute, value in human[answer].items():
                values[attribute].append(value)
        means.append({attribute: statistics.fmean(given) for attribute, given in values.items()})
        counts[leader]["rated_answers"] += bool(means[-1]) and not mine[answer]
        several += any(len(given) > 1 for given in values.values())
        for attribute, given in values.items():
            if len(given) > 1:
                deviations[leader][attribute].append(statistics.stdev(given))
    if several:
        counts[leader]["several_raters"] += several
    return first.with_human(means)


def stored(row: Conversation) -> list[dict[str, float]]:
    """The ratings as a file holds them, a mapping for each answer."""
    human = row.human or ({},) * row.num_answers
    return [{name: float(np.float32(value)) for name, value in values.items()} for values in human]


def serial_of(run: Run) -> SerialRows:
    """The same of a run's sources."""
    rows = run.preset.rows
    return serial_rows(
        {
            s.name: Lab(rows.lab).rows()
            if s.format == LAB
            else read(s.uri, s.format, run.schema, s.name, s.limit, s.columns)
            for s in rows.sources
        }
    )


def rows_of(run: Run) -> list[Conversation]:
    """What stage `rows` wrote, in order."""
    return [row for table in (run.folder("rows") / "rows").tables() for row in from_table(table)]


def rejected_of(run: Run) -> list[dict[str, Any]]:
    """What stage `rows` rejected, in order."""
    folder = run.folder("rows") / "rejected"
    return [json.loads(line) for path in folder.files() for line in folder.fs.cat_file(path).splitlines()]


def require_equal(run: Run, metrics: RowsMetrics, expected: SerialRows) -> None:
    """Ids, order, texts, ratings, rejections, counts and spread are those of the loop."""
    found = rows_of(run)
    assert [row.id for row in found] == [row.id for row in expected.rows]
    for row, other in zip(found, expected.rows, strict=True):
        assert (row.messages, row.system, row.source, row.group) == (
            other.messages,
            other.system,
            other.source,
            other.group,
        )
        assert [dict(values) for values in row.human] == stored(other)
    assert rejected_of(run) == [vars(r) for r in expected.rejected]
    assert metrics.counts == {name: dict(count) for name, count in expected.counts.items()}
    assert metrics.rows == len(found)
    assert set(metrics.sources) == {row.source for row in found}
    assert metrics.rater_spread.keys() == expected.spread.keys()
    for name, of in metrics.rater_spread.items():
        assert of.keys() == expected.spread[name].keys()
        assert all(abs(of[a] - expected.spread[name][a]) <= 0.6e-4 for a in of)
    size = run.preset.rows.rows_per_file
    parts = [len(table) for table in (run.folder("rows") / "rows").tables()]
    assert parts == [min(size, len(found) - start) for start in range(0, len(found), size)]
    assert not Path(f"{(run.folder('rows') / 'rows').path}.pieces").exists()
