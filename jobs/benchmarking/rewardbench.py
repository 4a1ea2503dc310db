"""Stage `benchmarks/rewardbench`: does the run's predictor score the right answers of RewardBench 2 highest?

Every prompt with each of its answers is a row for the annotation pool. Knows no rule of the benchmark
(`data.reward_bench2` does).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.benchmark_metrics import RewardBench2Metrics
from data.conversation import Conversation, Rejected, from_table, to_table
from data.reward_bench2 import TIES, RankedPrompt, ScoredPrompt, read_ranked, score, subset_accuracies
from data.run_layout import BENCHMARKS
from data.source_checksums import checksums
from data.storage import Storage
from jobs.benchmarking.settings import Benchmarking
from jobs.evaluation.predictor_pairs import answer_score, require_enough
from jobs.evaluation.predictor_quality import plain
from jobs.pipelines.annotation import annotator, predictor_weights, score_with, scoring_settings
from jobs.pipelines.map_rows import write_table
from jobs.reporting.sections_benchmarks import rewardbench_lines
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError, log

NAME = f"{BENCHMARKS}/rewardbench"


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt whose answers lie in the stage's rows."""

    id: str
    subset: str
    num_correct: int
    num_answers: int


def _work(run: Run, folder: Storage) -> RewardBench2Metrics:
    assert isinstance(run.preset, Benchmarking)
    weights = run.preset.ranking_weights()
    prompts, rejected = _store(run, run.preset, folder)
    scored = folder / "scored"
    score_with(run, "benchmark: rewardbench", [folder / "rows"], annotator(run, run.folder("predictor")), scored)
    rows = (row for table in scored.tables() for row in from_table(table))
    metrics = ranking_metrics(rows, prompts, weights, rejected)
    log("\n".join(rewardbench_lines(metrics)))
    return metrics


def _store(run: Run, preset: Benchmarking, folder: Storage) -> tuple[list[StoredPrompt], dict[str, int]]:
    """Write all answers below `folder`; returns the prompts in order, and rejections by reason."""
    settings = preset.benchmark.rewardbench
    prompts: list[StoredPrompt] = []
    rejected: list[Rejected] = []
    found = read_ranked(settings.uri, run.schema, settings.limit)
    while records := list(itertools.islice(found, preset.rows.rows_per_file)):
        rejected += [r for r in records if isinstance(r, Rejected)]
        kept = [r for r in records if isinstance(r, RankedPrompt)]
        if kept:
            answers = [answer for prompt in kept for answer in prompt.answers]
            write_table(to_table(answers, run.schema), folder / "rows", f"part-{len(prompts):09d}.parquet")
        prompts += [StoredPrompt(p.id, p.subset, p.num_correct, len(p.answers)) for p in kept]
    allowed = preset.rows.max_rejected
    require_enough("benchmark.rewardbench", "prompts", len(prompts), rejected, allowed, settings.uri, folder)
    return prompts, dict(Counter(r.reason for r in rejected))


def ranking_metrics(
    rows: Iterable[Conversation],
    prompts: Sequence[StoredPrompt],
    weights: Mapping[str, float],
    rejected: Mapping[str, int],
) -> RewardBench2Metrics:
    """Accuracy of the weighted sum of raw predicted values, of each attribute alone, and of the length.

    `rows` come in any order, with the ids of `data.reward_bench2`. A prompt with an unscored answer is left out
    everywhere. Raises StageError if no prompt is left.
    """
    columns = 2 + len(weights)
    scores_of = [np.full((prompt.num_answers, columns), np.nan) for prompt in prompts]  # scores_NX of each prompt
    for row in rows:
        prompt, place = map(int, row.id.split("-"))
        scores_of[prompt][place] = _line(row, weights)
    whole = [(p, s) for p, s in zip(prompts, scores_of, strict=True) if not np.isnan(s[:, 0]).any()]
    by_column = [
        subset_accuracies([ScoredPrompt(p.id, p.subset, p.num_correct, s[:, column]) for p, s in whole])
        for column in range(columns)
    ]
    subsets, length, *each = by_column
    if not subsets:
        raise StageError(
            f"no prompt of benchmark.rewardbench could be scored: of {len(prompts)}, {len(prompts) - len(whole)} have "
            "an answer that is too long for annotate.max_tokens, the others are half of a pair of Ties; raise "
            "annotate.max_tokens or benchmark.rewardbench.limit"
        )
    num_tied = sum(prompt.subset == TIES for prompt, _ in whole)
    metrics: dict[str, Any] = {
        "prompts": len(prompts),
        "rejected": dict(rejected),
        "unscored": len(prompts) - len(whole),
        "unpaired": num_tied - 2 * int(subsets.get(TIES, {"n": 0})["n"]),
        "weights": dict(weights),
        "subsets": subsets,
        "score": score(subsets),
        "length": score(length)["accuracy"],
        "each_attribute": {name: score(found)["accuracy"] for name, found in zip(weights, each, strict=True)},
    }
    return RewardBench2Metrics(**plain(metrics))


def _line(row: Conversation, weights: Mapping[str, float]) -> list[float]:
    alone = [row.predicted[-1].get(name, np.nan) for name in weights]
    return [answer_score(row, weights), len(row.messages[-1].content), *alone]


def _settings(preset: Preset) -> object:
    assert isinstance(preset, Benchmarking)
    rows = {"limit": preset.benchmark.rewardbench.limit, "max_rejected": preset.rows.max_rejected}
    scoring = scoring_settings(preset.annotate) | {"dtype": preset.annotate.pool.dtype}
    return rows | {"weights": preset.ranking_weights(), "scoring": scoring}


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the file and of the predictor."""
    assert isinstance(run.preset, Benchmarking)
    return checksums(run.preset.benchmark.rewardbench.uri) | predictor_weights(run)


STAGE = Stage(NAME, ("predictor",), _settings, _work, _inputs)
