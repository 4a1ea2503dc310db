"""Score against setting: as a table, as a figure, and as a part of a run's report."""

from pathlib import Path

from support.finished_run import finished
from support.manifests import finish

from data.benchmark_metrics import BenchmarkTable, RewardBench2Metrics, SettingScores, TaskScore
from data.quality_metrics import PairAccuracy, SectionAccuracy
from data.run_layout import REPORT, read_record
from data.steering_metrics import ReportMetrics
from jobs.reporting.blocks import Gallery
from jobs.reporting.page import write_pages
from jobs.reporting.sections_benchmarks import benchmark_lines, benchmark_parts

SETTINGS = {"plain": {"humor": 0.0, "verbosity": 1.0}, "funny": {"humor": 4.0, "verbosity": 1.0}}
SCORES = (
    SettingScores(
        task="gsm8k",
        metric="exact_match (strict-match)",
        samples=8,
        at={"plain": TaskScore(value=0.5, stderr=0.1), "funny": TaskScore(value=0.25, stderr=None)},
    ),
    SettingScores(task="gsm8k", metric="exact_match (flexible-extract)", samples=8, at={}),
    SettingScores(task="ifeval", metric="acc", samples=9, at={"plain": TaskScore(value=None)}),
)
REWARDBENCH = RewardBench2Metrics(
    prompts=12,
    rejected={"wrong_id": 1},
    unscored=2,
    unpaired=0,
    weights={"helpfulness": 1.0, "humor": 0.0},
    subsets={"Math": PairAccuracy(n=10, accuracy=0.7, low=0.4, high=0.9)},
    score=SectionAccuracy(accuracy=0.7, low=0.4, high=0.9, missing=("Ties",)),
    length=0.3,
    each_attribute={"helpfulness": 0.7, "humor": 0.2},
)
FILE = "benchmarks/alpaca_eval/demo-funny/answers/model_outputs.json"
TABLE = BenchmarkTable(settings=SETTINGS, scores=SCORES, rewardbench=REWARDBENCH, answers=(FILE,))


def test_the_table_has_a_column_for_each_setting() -> None:
    lines = [" ".join(line.split()) for line in benchmark_lines(TABLE)]
    assert "task, metric questions plain funny" in lines
    assert "gsm8k, exact_match (strict-match) 8 0.500 (0.304 to 0.696) 0.250" in lines
    assert "ifeval, acc 9 - -" in lines
    assert "Math 10 0.700 (0.400 to 0.900)" in lines
    assert "RewardBench 2, score of an answer +1.00 helpfulness; not in the file: Ties" in lines
    assert "Mean by others; left out: 2 unscored, 1 wrong_id" in lines


def test_a_figure_for_each_task_shows_its_first_metric() -> None:
    scores, rewardbench, answers = benchmark_parts(TABLE)
    (gallery,) = (block for block in scores.blocks if isinstance(block, Gallery))
    assert [figure.alt for figure in gallery.figures] == [
        "exact_match (strict-match) of gsm8k at each setting: plain 0.500, funny 0.250.",
        "acc of ifeval at each setting: plain –, funny –.",
    ]
    assert (rewardbench.name, answers.name) == ("rewardbench", "judged-answers")
    assert benchmark_parts(BenchmarkTable(settings={}, rewardbench=REWARDBENCH)) == [rewardbench]


def test_the_report_of_a_run_has_what_was_benchmarked(tmp_path: Path) -> None:
    run = finished(tmp_path)
    finish(run.root, "benchmarks/table", TABLE)
    folder = run.folder("report")
    pictures = write_pages(run, read_record(folder / REPORT, ReportMetrics), folder)
    assert "figures/benchmark-gsm8k.svg" in pictures
    assert "| gsm8k, exact_match (strict-match) | 8 |" in (folder / "report.md").read_text()
    assert FILE in (folder / "report.md").read_text()
    assert '<section id="rewardbench"' in (folder / "report.html").read_text()
