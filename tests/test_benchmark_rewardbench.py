"""Stage `benchmarks/rewardbench`: prompts read, their answers scored by the predictor, the benchmark's numbers."""

import json
from pathlib import Path

import pytest
from support.annotated_run import predictor_stage
from support.benchmark_run import made
from support.manifests import finish, metrics_of

from data.benchmark_metrics import BenchmarkTable, RewardBench2Metrics
from data.conversation import Conversation, Message
from data.quality_metrics import PairAccuracy
from jobs.benchmark import stages
from jobs.benchmarking.rewardbench import STAGE, StoredPrompt, ranking_metrics
from jobs.runner.needs import needs
from jobs.runner.stage import Run, StageError, perform

ANSWERS = ["Owls fly at night.", "No.", "A joke: why do owls hoot?", "You fool."]
RECORD = {"id": "0", "prompt": "Tell me.", "chosen": ANSWERS[:1], "rejected": ANSWERS[1:], "subset": "Focus"}
TIES = [
    RECORD | {"id": "tied:0", "chosen": ANSWERS[:2], "rejected": ANSWERS[2:], "subset": "Ties"},
    RECORD | {"id": "ref:0", "subset": "Ties"},
]


def with_file(tmp_path: Path, *records: object, words: tuple[str, ...] = ()) -> Run:
    file = tmp_path / "ranked.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Run(
        made(f"storage={tmp_path / 'runs'}", f"benchmark.rewardbench.uri={file}", "rows.max_rejected=0.5", *words)
    )


def scored(prompt: int, *humor: float | None) -> list[Conversation]:
    """Answers with a prediction each, or none."""
    messages = (Message("user", "Why?"), Message("assistant", "Because."))
    return [
        Conversation(
            "rewardbench", "", messages, id=f"{prompt:09d}-{place:03d}", predicted=({} if h is None else {"humor": h},)
        )
        for place, h in enumerate(humor)
    ]


def test_answers_find_their_prompts_in_any_order_and_an_unscored_one_takes_its_prompt_out() -> None:
    prompts = [StoredPrompt(str(i), "Math", 1, 4) for i in range(3)] + [StoredPrompt("ref:9", "Ties", 1, 4)]
    rows = [*scored(1, 0, 1, 0, 0), *scored(3, 3, 1, 1, 1), *scored(0, 3, 2, 1, 0)[::-1], *scored(2, 1, None, 0, 0)]
    found = ranking_metrics(rows, prompts, {"humor": 1.0}, {"wrong_id": 2})
    assert (found.prompts, found.unscored, found.unpaired, found.rejected) == (4, 1, 1, {"wrong_id": 2})
    assert list(found.subsets) == ["Math"]
    math = found.subsets["Math"]
    assert (math.n, math.accuracy) == (2, 0.5)
    assert found.score.accuracy == found.each_attribute["humor"] == 0.5
    assert found.length == 0.25, "all are of the same length"
    assert "Ties" in found.score.missing


def test_without_a_scored_prompt_there_is_no_number() -> None:
    with pytest.raises(StageError, match=r"no prompt of benchmark.rewardbench could be scored.*annotate.max_tokens"):
        ranking_metrics(scored(0, 1, None), [StoredPrompt("0", "Math", 1, 2)], {"humor": 1.0}, {})


def test_too_many_broken_records_stop_it_before_anything_is_scored(tmp_path: Path) -> None:
    run = with_file(tmp_path, RECORD, {"prompt": "a"}, words=("rows.max_rejected=0.1",))
    (run.root / "predictor" / "model" / "config.json").write_json({})
    finish(run.root, "predictor")
    with pytest.raises(
        StageError, match=r"benchmark.rewardbench: 1 prompts and 1 broken ones .* line 2: missing_column"
    ):
        perform(run, STAGE)


def test_the_predictor_is_needed_and_its_pool_is_planned(tmp_path: Path) -> None:
    run = with_file(tmp_path, RECORD)
    assert STAGE.needs == ("predictor",)
    assert [demand.what for demand in needs(run, ["benchmarks/rewardbench"]).demands] == ["annotate.pool"]
    assert needs(run, ["benchmarks/lm_eval/a/b/scores", "benchmarks/table"]).demands == ()


@pytest.mark.slow
@pytest.mark.ray
def test_a_file_is_scored_by_the_predictor(tmp_path: Path, tiny_predictor: str, ray_cluster: object) -> None:
    run = with_file(tmp_path, RECORD, *TIES, {"prompt": "a"}, words=("benchmark.rewardbench.weights={humor: 2}",))
    finish(run.root, "rows")
    perform(run, predictor_stage(tiny_predictor))
    done = {stage.name: perform(run, stage) for stage in stages(run.preset)}
    found = metrics_of(done["benchmarks/rewardbench"], RewardBench2Metrics)
    assert (found.prompts, found.unscored, found.unpaired, found.rejected) == (3, 0, 0, {"missing_column": 1})
    rows = (
        row
        for table in (run.folder("benchmarks/rewardbench") / "scored").tables()
        for row in table.to_pylist()
        if row["id"].startswith("000000000-")
    )
    humor = {row["messages"][1]["content"]: row["predicted"][0]["humor"] for row in rows}
    is_best = humor[ANSWERS[0]] == max(humor.values())
    focus = found.subsets["Focus"]
    assert isinstance(focus, PairAccuracy)
    assert focus.accuracy == float(is_best)
    assert found.subsets["Ties"].n == 1
    assert metrics_of(done["benchmarks/table"], BenchmarkTable).rewardbench == found
    page = (run.folder("benchmarks/table") / "report.html").read_text()
    assert "The predictor on RewardBench 2" in page
    assert all(perform(run, stage).skipped for stage in stages(run.preset))
