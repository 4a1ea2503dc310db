"""Stage `benchmarks/table`: score against setting, from what other stages and a judge left, as records and as a page.

Runs no benchmark and asks no judge.
"""

from collections.abc import Sequence

from data.benchmark_metrics import BenchmarkTable, RewardBench2Metrics, SettingScores, TaskMetrics
from data.run_layout import BENCHMARKS, write_record
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from jobs.benchmarking.judged_answers import answer_stages
from jobs.benchmarking.judged_scores import judged_inputs, judged_scores
from jobs.benchmarking.lm_evaluation import stage_name
from jobs.benchmarking.rewardbench import NAME as REWARDBENCH
from jobs.benchmarking.settings import Benchmarking, LmEvalTask
from jobs.reporting.page import write_parts
from jobs.reporting.sections_benchmarks import benchmark_lines, benchmark_parts
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, log

NAME, FILE = f"{BENCHMARKS}/table", "benchmarks.json"


def table_stage(needs: Sequence[str]) -> Stage:
    """`needs`: the stages of all benchmarks."""
    return Stage(NAME, tuple(needs), _settings, _work, judged_inputs)


def _settings(preset: Preset) -> object:
    assert isinstance(preset, Benchmarking)
    return {
        "settings": list(preset.benchmark.named_settings),
        "tasks": [t.name for t in preset.benchmark.lm_eval.tasks],
    }


def _work(run: Run, folder: Storage) -> BenchmarkTable:
    preset = run.preset
    assert isinstance(preset, Benchmarking)
    scores = [row for task in preset.benchmark.lm_eval.tasks for row in _rows(run, preset, task)]
    scores += judged_scores(run, preset)
    found = BenchmarkTable(
        settings={name: preset.requested(name) for name in preset.benchmark.named_settings} if scores else {},
        scores=tuple(scores),
        rewardbench=run.metrics(REWARDBENCH, RewardBench2Metrics) if preset.benchmark.rewardbench.uri else None,
    )
    answers = [run.metrics(stage.name, AnswersMetrics) for stage in answer_stages(preset)]
    files = tuple((a.benchmark_file or a.answers).removeprefix(f"{run.root.uri}/") for a in answers if a)
    found = found.model_copy(update={"answers": files} if files else {})
    write_record(folder / FILE, found)
    write_parts(f"{preset.run}: benchmarks", f"Run “{preset.run}”.", benchmark_parts(found), folder)
    log("\n".join(benchmark_lines(found)))
    return found


def _rows(run: Run, preset: Benchmarking, task: LmEvalTask) -> list[SettingScores]:
    """A row for each metric of the task."""
    found = {name: run.metrics(stage_name(name, task), TaskMetrics) for name in preset.benchmark.named_settings}
    at = {name: metrics for name, metrics in found.items() if metrics}
    metrics = dict.fromkeys(metric for one in at.values() for metric in one.scores)
    samples = max(one.samples for one in at.values())
    return [
        SettingScores(
            task=task.name,
            metric=metric,
            samples=samples,
            at={name: one.scores[metric] for name, one in at.items() if metric in one.scores},
        )
        for metric in metrics
    ]
