"""Does the predictor prefer the answers that people preferred? Pairs are read before training and scored after it.

A broken pair is kept with file, line and reason. Knows no metric (`data.measures`) and no format (`data.pairs`).
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.conversation import Conversation, Rejected, from_table, to_table
from data.measures import pairwise_accuracy
from data.pairs import Pair, read_pairs
from data.quality_metrics import PairMetrics
from data.reward_bench import sections
from data.storage import Storage
from jobs.evaluation.predictor_quality import plain
from jobs.pipelines.annotation import score_with
from jobs.pipelines.map_rows import write_table
from jobs.runner.evaluation_settings import PairSource
from jobs.runner.stage import Run, StageError


@dataclass(frozen=True)
class StoredPairs:
    """A set of pairs that was read."""

    pairs: int
    rejected: dict[str, int]
    """By reason."""


def store_pairs(
    run: Run, folder: Storage, sources: Sequence[PairSource], setting: str = "predictor.pairs"
) -> dict[str, StoredPairs]:
    """Write both sides of every pair of every set below `folder`; returns the counts of each set.

    This happens before training: a broken file then costs none. Raises StageError for a set without a pair, or with
    more broken ones than rows.max_rejected allows.
    """
    return {source.name: _store(run, source, folder / source.name, setting) for source in sources}


def _store(run: Run, source: PairSource, folder: Storage, setting: str) -> StoredPairs:
    rejected: list[Rejected] = []
    kept = _kept(read_pairs(source.uri, run.schema, source.name, source.limit), rejected)
    num_pairs = 0
    while pairs := list(itertools.islice(kept, run.preset.rows.rows_per_file)):
        # A pair of a subset has the subset's name as its source.
        sides = [replace(side, source=p.subset or source.name) for p in pairs for side in (p.chosen, p.rejected)]
        write_table(to_table(sides, run.schema), folder / "rows", f"part-{num_pairs:09d}.parquet")
        num_pairs += len(pairs)
    what, allowed = f"{setting} {source.name!r}", run.preset.rows.max_rejected
    require_enough(what, "pairs", num_pairs, rejected, allowed, source.uri, folder)
    return StoredPairs(num_pairs, dict(Counter(r.reason for r in rejected)))


def require_enough(
    what: str, kind: str, num_kept: int, rejected: Sequence[Rejected], allowed: float, uri: str, folder: Storage
) -> None:
    """Write `rejected.jsonl` into `folder`; raise StageError for an empty set, or more broken records than allowed."""
    file = folder / "rejected.jsonl"
    file.write_bytes(
        "".join(json.dumps(vars(r), ensure_ascii=False) + "\n" for r in rejected).encode(errors="backslashreplace")
    )
    if not num_kept or len(rejected) > allowed * (num_kept + len(rejected)):
        worst = "; ".join(f"{r.file} line {r.line}: {r.reason}, {r.detail}" for r in rejected[:3])
        raise StageError(
            f"{what}: {num_kept} {kind} and {len(rejected)} broken ones at {uri}, rows.max_rejected allows "
            f"{allowed:.1%}: {worst or 'the file is empty'}; all are in {file.uri}; "
            "fix them, raise rows.max_rejected or remove the set"
        )


def _kept(found: Iterator[Pair | Rejected], rejected: list[Rejected]) -> Iterator[Pair]:
    for pair in found:
        if isinstance(pair, Rejected):
            rejected.append(pair)
        else:
            yield pair


def judge_pairs(
    run: Run,
    stored: Mapping[str, StoredPairs],
    folder: Storage,
    arguments: Mapping[str, object],
    weights: Mapping[str, float],
) -> dict[str, PairMetrics]:
    """Score both sides of the `stored` pairs with the predictor of `arguments`; returns the metrics of each set."""
    metrics = {}
    for name, counts in stored.items():
        sides, scored = folder / name / "rows", folder / name / "scored"
        score_with(run, f"predictor: pairs {name}", [sides], arguments, scored)
        rows = (row for table in scored.tables() for row in from_table(table))
        metrics[name] = pair_metrics(rows, weights, counts, name)
    return metrics


def pair_metrics(
    sides: Iterator[Conversation], weights: Mapping[str, float], stored: StoredPairs, name: str
) -> PairMetrics:
    """Accuracy of the weighted sum of raw predicted values, of each attribute alone (higher wins), and of the length.

    All are of the last answer. `sides` come in any order, with the ids of `data.pairs`. A pair with an unscored side is
    counted and left out everywhere. Pairs with another source than the set's `name` belong to subsets: these get the
    sum's accuracy, too, and so do RewardBench's sections of them.
    """
    values: dict[str, dict[str, np.ndarray]] = {}
    subset_of: dict[str, str] = {}
    for side in sides:
        pair, _, which = side.id.rpartition("-")
        scores = [answer_score(side, weights), len(side.messages[-1].content), *_values(side, weights)]
        values.setdefault(pair, {})[which] = np.array(scores)
        subset_of[pair] = side.source
    assert [len(pair) for pair in values.values()] == [2] * stored.pairs, "every pair comes back with both sides"
    chosen_P, rejected_P = (np.array([pair[which] for pair in values.values()]) for which in ("chosen", "rejected"))
    scored_P = ~np.isnan(chosen_P[:, 0] + rejected_P[:, 0])
    score, length, *each = (
        pairwise_accuracy(a, b) for a, b in zip(chosen_P[scored_P].T, rejected_P[scored_P].T, strict=True)
    )
    alone = {name: found.get("accuracy") for name, found in zip(weights, each, strict=True)}
    metrics: dict[str, Any] = {**vars(stored), "unscored": int((~scored_P).sum()), "weights": dict(weights)}
    metrics |= {"predictor": score, "length": length, "each_attribute": alone}
    subset_P = np.array([subset_of[pair] for pair in values])
    if set(subset_of.values()) != {name}:
        named = {str(name): subset_P == name for name in np.unique(subset_P)}
        subsets = {s: pairwise_accuracy(chosen_P[of_s, 0], rejected_P[of_s, 0]) for s, of_s in named.items()}
        metrics |= {"subsets": subsets, "sections": sections(subsets)}
    return PairMetrics(**plain(metrics))


def answer_score(row: Conversation, weights: Mapping[str, float]) -> float:
    """The weighted sum of the raw predicted values of the row's last answer; NaN if it was not rated."""
    return float(np.dot(_values(row, weights), list(weights.values())))


def _values(row: Conversation, weights: Mapping[str, float]) -> list[float]:
    return [row.predicted[-1].get(name, np.nan) for name in weights]
