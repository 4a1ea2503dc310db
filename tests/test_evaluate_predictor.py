"""Benchmarks of a trained predictor, without training: files in, scored by the annotation pool, metrics out."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from support.annotated_run import predictor_stage
from support.manifests import finish, metrics_of

from cluster.settings.load import load
from data.measures import agreement, pairwise_accuracy
from data.quality_metrics import PairMetrics
from data.stage_metrics import BenchmarkMetrics
from data.storage import Storage
from jobs.evaluate_predictor import STAGE
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError, perform

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
SUBSETS = ["mt-bench-easy", "llmbar-natural", "donotanswer", "math-prm"]
SAYINGS = [
    "Owls fly at night.",
    "Owls hunt mice, and fly at night.",
    "No.",
    "Bees make honey.",
    "A joke: why do owls hoot?",
    "You fool.",
    "Yes.",
    "The moon.",
]


def _run(tmp_path: Path, predictor: str, *more: str) -> Run:
    run = Run(
        load(Preset, DEMO, [f"storage={tmp_path / 'runs'}", "rows.max_rejected=0.5", "rows.rows_per_file=3", *more])
    )
    finish(run.root, "rows")
    perform(run, predictor_stage(predictor))
    return run


def _write(file: Path, records: list[object]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


@pytest.mark.slow
@pytest.mark.ray
def test_subsets_sections_and_a_judge(tmp_path: Path, tiny_predictor: str, ray_cluster: object) -> None:
    pairs = [
        {"prompt": "Tell me.", "chosen": a, "rejected": b, "subset": SUBSETS[i % 4], "id": i}
        for i, (a, b) in enumerate(itertools.pairwise(SAYINGS))
    ]
    judged = [{"prompt": "Tell me.", "response": said, "score": i % 5} for i, said in enumerate(SAYINGS)]
    files = [
        _write(tmp_path / "pairs.jsonl", [*pairs, {"prompt": "x"}]),
        _write(tmp_path / "judged.jsonl", [*judged, {"prompt": "x", "response": "y"}]),
    ]
    settings = [
        f"benchmarks.pairs=[{{name: bench, uri: {files[0]}}}]",
        f"benchmarks.judged=[{{name: judge, uri: {files[1]}}}]",
        "benchmarks.weights={humor: 2}",
    ]
    run = _run(tmp_path, tiny_predictor, *settings)
    performed = perform(run, STAGE)
    metrics = metrics_of(performed, BenchmarkMetrics)

    judge = metrics.judged["judge"]
    assert (judge.answers, judge.unscored, judge.rejected) == (8, 0, {"missing_column": 1})
    scores = [i % 5 for i in range(8)]
    by_length = agreement([len(s) for s in SAYINGS], scores)
    assert judge.length.model_dump() == pytest.approx(by_length, abs=1e-4)
    # The judge's file has the predictor's value of each saying: the pairs' metrics follow from it.
    scored = (
        row
        for table in Storage(str(tmp_path / "runs/demo/benchmarks/judged/judge/scored")).tables()
        for row in table.to_pylist()
    )
    humor = {row["messages"][1]["content"]: row["predicted"][0]["humor"] for row in scored}
    assert judge.score == judge.each_attribute["humor"]
    by_humor = agreement([humor[s] for s in SAYINGS], scores)
    assert judge.score.model_dump() == pytest.approx(by_humor, abs=1e-4)
    _check_subsets(metrics.pairs["bench"], pairs, humor)
    written = performed.manifest.metrics
    json.dumps(written, allow_nan=False)
    assert (run.folder("benchmarks") / "benchmarks.json").read_json() == written
    assert perform(run, STAGE).skipped


def _check_subsets(bench: PairMetrics, pairs: list[dict[str, Any]], humor: dict[str, float]) -> None:
    """Each subset's accuracy follows from the value of `humor` of its answers, the score from the subsets."""
    for subset in SUBSETS:
        own = [p for p in pairs if p["subset"] == subset]
        wanted = pairwise_accuracy([humor[p["chosen"]] for p in own], [humor[p["rejected"]] for p in own])
        assert bench.subsets[subset].model_dump() == pytest.approx(wanted, abs=1e-4)
    mean = sum(bench.subsets[s].accuracy or 0.0 for s in SUBSETS) / 4
    assert bench.sections["score"].accuracy == pytest.approx(mean, abs=1e-4)
    assert bench.rejected == {"missing_column": 1}


@pytest.mark.ray
def test_real_pairs(tmp_path: Path, tiny_predictor: str, ray_cluster: object, real_data: Path) -> None:
    run = _run(
        tmp_path,
        tiny_predictor,
        f"benchmarks.pairs=[{{name: hh, uri: {real_data / 'hh_rlhf_harmless_test'}, limit: 40}}]",
        "annotate.pool.num_actors=1",
    )
    found = metrics_of(perform(run, STAGE), BenchmarkMetrics).pairs["hh"]
    agreed = found.predictor
    assert agreed.n + found.unscored == found.pairs == 40
    assert agreed.low is not None
    assert agreed.accuracy is not None
    assert agreed.high is not None
    assert agreed.low < agreed.accuracy < agreed.high
    assert "subsets" not in found.model_fields_set


def test_mistakes_are_told_before_anything_is_scored(tmp_path: Path, tiny_predictor: str) -> None:
    with pytest.raises(StageError, match=r"benchmarks names no set; set benchmarks.pairs or benchmarks.judged"):
        perform(_run(tmp_path, tiny_predictor), STAGE)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        perform(
            _run(tmp_path, tiny_predictor, f"benchmarks.judged=[{{name: j, uri: {tmp_path}/nowhere.jsonl}}]"), STAGE
        )
    silent = _write(tmp_path / "silent.jsonl", [{"prompt": "x", "response": "y"}])
    with pytest.raises(
        StageError,
        match=r"benchmarks.judged 'j': 0 judged answers and 1 broken ones .* missing_column, no column 'score'",
    ):
        perform(_run(tmp_path, tiny_predictor, f"benchmarks.judged=[{{name: j, uri: {silent}}}]"), STAGE)
    for words, sentence in (
        (
            ["benchmarks.pairs=[{name: a, uri: x}]", "benchmarks.judged=[{name: a, uri: y}]"],
            "benchmarks has the names a, a; give each set a different name",
        ),
        (["benchmarks.pairs=[{name: a, uri: x}]", "benchmarks.weights={humour: 1}"], "did you mean 'humor'"),
        (
            ["benchmarks.pairs=[{name: a, uri: x}]", "benchmarks.weights={humor: 0}"],
            "benchmarks.weights leaves every attribute",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            load(Preset, DEMO, words)
