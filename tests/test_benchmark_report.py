"""Score against setting: as a table, and as a figure. `test_report.py` has the parts in a run's report."""

from support.benchmark_table import FILE, REWARDBENCH, TABLE

from data.benchmark_metrics import BenchmarkTable
from jobs.reporting.blocks import Gallery
from jobs.reporting.sections_benchmarks import benchmark_lines, benchmark_parts


def test_the_table_has_a_column_for_each_setting() -> None:
    lines = [" ".join(line.split()) for line in benchmark_lines(TABLE)]
    assert "task, metric questions plain funny" in lines
    assert "gsm8k, exact_match (strict-match) 8 0.500 (0.304 to 0.696) 0.250" in lines
    assert "ifeval, acc 9 - -" in lines
    assert "Math 10 0.700 (0.400 to 0.900)" in lines
    assert "RewardBench 2, score of an answer +1.00 helpfulness; not in the file: Ties" in lines
    assert lines[-1] == f"answers for judges: {FILE}"
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
