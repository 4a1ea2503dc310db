"""Stage `benchmarks`: evaluate a trained predictor on public tests: pairs (e.g. RewardBench) and the scores of a judge.

    python -m jobs.evaluate_predictor PRESET.yaml benchmarks.pairs='[{name: test, uri: ...}]' [key.path=value ...]

Nothing is trained. The score of an answer is one weighted sum of its attributes (`benchmarks.weights`); every attribute
alone and the length of the answer are baselines.
"""

import itertools
from collections import Counter

import numpy as np

from data.conversation import Conversation, Rejected, from_table, to_table
from data.judged import Judged, read_judged
from data.measures import agreement
from data.quality_metrics import Agreement, JudgedMetrics
from data.run_layout import write_record
from data.source_checksums import checksums
from data.stage_metrics import BenchmarkMetrics
from data.storage import Storage
from jobs.evaluation.predictor_pairs import answer_score, judge_pairs, require_enough, store_pairs
from jobs.evaluation.predictor_quality import plain
from jobs.pipelines.annotation import annotator, predictor_weights, score_with
from jobs.pipelines.map_rows import write_table
from jobs.reporting.sections_predictor import judge_lines, pair_lines
from jobs.runner.cli import main
from jobs.runner.evaluation_settings import JudgedSource
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError, log


def work(run: Run, folder: Storage) -> BenchmarkMetrics:
    """Read all sets first, so that a broken file costs no scoring."""
    settings, weights = run.preset.benchmarks, run.preset.benchmark_weights()
    if not (settings.pairs or settings.judged):
        raise StageError(
            "benchmarks names no set; set benchmarks.pairs or benchmarks.judged, "
            "e.g. benchmarks.pairs='[{name: rewardbench, uri: FILE}]'"
        )
    pairs = store_pairs(run, folder / "pairs", settings.pairs, "benchmarks.pairs")
    judged = {source.name: _store(run, source, folder / "judged" / source.name) for source in settings.judged}
    arguments = annotator(run, run.folder("predictor"))
    agreement = judge_pairs(run, pairs, folder / "pairs", arguments, weights)
    if agreement:
        log("\n".join(pair_lines(agreement)))
    compared = {
        name: _compare(run, name, scores_N, rejected, folder / "judged" / name, arguments, weights)
        for name, (scores_N, rejected) in judged.items()
    }
    if compared:
        log("\n".join(judge_lines(compared)))
    metrics = BenchmarkMetrics(weights=weights, pairs=agreement, judged=compared)
    write_record(folder / "benchmarks.json", metrics)
    return metrics


def _store(run: Run, source: JudgedSource, folder: Storage) -> tuple[np.ndarray, dict[str, int]]:
    """Write the rows of a set; returns the judge's scores, in the order of their ids, and rejections by reason."""
    rejected: list[Rejected] = []
    scores: list[float] = []
    found = read_judged(source.uri, run.schema, source.name, source.limit)
    while records := list(itertools.islice(found, run.preset.rows.rows_per_file)):
        rejected += [r for r in records if isinstance(r, Rejected)]
        kept = [r for r in records if isinstance(r, Judged)]
        if kept:
            write_table(to_table([r.row for r in kept], run.schema), folder / "rows", f"part-{len(scores):09d}.parquet")
        scores += [r.score for r in kept]
    what, allowed = f"benchmarks.judged {source.name!r}", run.preset.rows.max_rejected
    require_enough(what, "judged answers", len(scores), rejected, allowed, source.uri, folder)
    return np.array(scores), dict(Counter(r.reason for r in rejected))


def _compare(
    run: Run,
    name: str,
    scores_N: np.ndarray,
    rejected: dict[str, int],
    folder: Storage,
    arguments: dict[str, object],
    weights: dict[str, float],
) -> JudgedMetrics:
    """Agreement of the predictor, each attribute and the length with the judge; unrated answers are only counted."""
    scored = folder / "scored"
    score_with(run, f"benchmarks: {name}", [folder / "rows"], arguments, scored)
    lines = [np.full(2 + len(weights), np.nan)] * len(scores_N)
    for row in (row for table in scored.tables() for row in from_table(table)):
        lines[int(row.id.rpartition("-")[2])] = _line(row, weights)
    ours_NX = np.array(lines)
    ours_NX[np.isnan(ours_NX[:, 0])] = np.nan  # the length counts the same answers
    score, length, *each = (Agreement(**plain(agreement(column_N, scores_N))) for column_N in ours_NX.T)
    return JudgedMetrics(
        answers=len(scores_N),
        rejected=rejected,
        unscored=int(np.isnan(ours_NX[:, 0]).sum()),
        score=score,
        length=length,
        each_attribute=dict(zip(weights, each, strict=True)),
    )


def _line(row: Conversation, weights: dict[str, float]) -> np.ndarray:
    alone = [row.predicted[-1].get(name, np.nan) for name in weights]
    return np.array([answer_score(row, weights), len(row.messages[-1].content), *alone])


def _settings(preset: Preset) -> object:
    scoring = preset.annotate.model_copy(update={"pool": None})
    sets = {"benchmarks": preset.benchmarks, "weights": preset.benchmark_weights()}
    return sets | {"scoring": scoring, "dtype": preset.annotate.pool.dtype, "max_rejected": preset.rows.max_rejected}


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the files and of the predictor."""
    benchmarks = run.preset.benchmarks
    uris = [*(source.uri for source in benchmarks.pairs), *(source.uri for source in benchmarks.judged)]
    return checksums(*uris) | predictor_weights(run)


STAGE = Stage("benchmarks", ("predictor",), _settings, work, _inputs)

if __name__ == "__main__":
    main(__doc__, [STAGE])
