"""The report about public benchmarks: score against setting, and the predictor on RewardBench 2.

Made from the records of `data.benchmark_metrics`. Knows no HTML and no Markdown.
"""

from collections.abc import Iterator

from data.benchmark_metrics import BenchmarkTable, RewardBench2Metrics, TaskScore
from data.run_layout import BENCHMARKS
from jobs.reporting.blocks import Block, Gallery, Part
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_benchmarks import score_plots
from jobs.reporting.tables import Cell, Table, as_text, between, shown
from jobs.runner.stage import Run

ABOUT_SCORES = (
    "The policy on public tasks, run by lm-eval through the endpoint, with the attributes requested at each setting. "
    "Scores are as the task defines them, with the 95 % interval that its standard error gives. Win rates, in which a "
    "tie counts half, and ratings are a judge's (jobs.judge), with its intervals over questions. Good: what the "
    "attributes do not ask for stays the same, and settings that ask for correct answers score higher."
)
ABOUT_REWARDBENCH = (
    "RewardBench 2 (arXiv 2506.01937): the predictor scores four answers to each prompt, of which one is right, and "
    "that one is to score highest; guessing gives .25. In Ties many answers are right, and the score also rewards a "
    "gap between right and wrong ones that is wider than the spread of the right ones. Every subset counts alike. "
    "Good: the predictor is above the longer answer and above each attribute alone."
)
ABOUT_ANSWERS = (
    "The policy's answers at each setting, in the run's folder, as AlpacaEval, Arena-Hard and FastChat read them. "
    "jobs.judge has them judged by any OpenAI-compatible endpoint."
)
DIGITS = 3


def benchmark_parts(found: BenchmarkTable) -> list[Part]:
    """The parts that have content."""
    parts = []
    if found.scores:
        figures = [as_svg(plot) for plot in score_plots(found)]
        blocks: list[Block] = [_scores(found), Gallery(figures), _requested(found)]
        parts.append(Part("benchmarks", "Benchmarks at each setting", ABOUT_SCORES, blocks))
    if found.rewardbench:
        tables = list(_rewardbench(found.rewardbench))
        parts.append(Part("rewardbench", "The predictor on RewardBench 2", ABOUT_REWARDBENCH, tables))
    if found.answers:
        table = Table("", ["file"], [[file] for file in found.answers])
        parts.append(Part("judged-answers", "Answers for judges", ABOUT_ANSWERS, [table]))
    return parts


def benchmark_lines(found: BenchmarkTable) -> Iterator[str]:
    """The tables, and the files of answers, for a terminal."""
    if found.scores:
        yield from as_text(_scores(found))
    if found.rewardbench:
        yield from rewardbench_lines(found.rewardbench)
    yield from (f"answers for judges: {file}" for file in found.answers)


def rewardbench_lines(found: RewardBench2Metrics) -> Iterator[str]:
    """The same for RewardBench 2."""
    for table in _rewardbench(found):
        yield from as_text(table)


def run_benchmarks(run: Run) -> list[Part]:
    """Those that `jobs.benchmark` has run, for the run's own report."""
    found = run.metrics(f"{BENCHMARKS}/table", BenchmarkTable)
    return benchmark_parts(found) if found else []


def _scores(found: BenchmarkTable) -> Table:
    rows: list[list[Cell]] = [
        [f"{row.task}, {row.metric}", row.samples, *(_cell(row.at.get(name)) for name in found.settings)]
        for row in found.scores
    ]
    return Table("Score at each setting (95 % interval)", ["task, metric", "questions", *found.settings], rows)


def _cell(score: TaskScore | None) -> str | None:
    if score is None or score.value is None:
        return None
    low, high = score.bounds or (None, None)
    return between(score.value, low, high, DIGITS)


def _requested(found: BenchmarkTable) -> Table:
    names = list(dict.fromkeys(name for values in found.settings.values() for name in values))
    rows = [[setting, *(f"{values[n]:g}" for n in names)] for setting, values in found.settings.items()]
    return Table("Requested values", ["setting", *names], rows)


def _rewardbench(found: RewardBench2Metrics) -> Iterator[Table]:
    rows: list[list[Cell]] = [
        [name, row.n, between(row.accuracy, row.low, row.high, DIGITS)] for name, row in found.subsets.items()
    ]
    rows.append(["mean", None, between(found.score.accuracy, found.score.low, found.score.high, DIGITS)])
    weights = " ".join(f"{weight:+.2f} {name}" for name, weight in found.weights.items() if weight)
    missing = f"; not in the file: {', '.join(found.score.missing)}" if found.score.missing else ""
    yield Table(
        f"RewardBench 2, score of an answer {weights}{missing}", ["subset", "prompts", "score (95 % interval)"], rows
    )
    others: list[list[Cell]] = [[name, shown(value, DIGITS)] for name, value in found.each_attribute.items()]
    others.append(["the longer answer", shown(found.length, DIGITS)])
    left_out = {"unscored": found.unscored, "unpaired": found.unpaired, **found.rejected}
    counts = ", ".join(f"{count:,} {name}" for name, count in left_out.items() if count)
    yield Table(f"Mean by others{f'; left out: {counts}' if counts else ''}", ["higher is better", "mean"], others)
