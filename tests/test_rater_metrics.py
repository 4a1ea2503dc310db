"""What a run makes of its raters' agreement with people: the scale of its labels, and a table of the report."""

from pathlib import Path

import pyarrow as pa
import pytest
from support.finished_run import finished
from support.manifests import finish

from data.counters import Counters, with_counters
from data.rater_metrics import AGAIN, JudgeSpending, RaterMetrics
from data.shards import Output, write_part
from data.stage_metrics import AnnotationMetrics
from data.storage import Storage
from jobs.pipelines.annotation import calibration, drop_failed_parts, endpoint_rater, rater_report
from jobs.pipelines.map_rows import write_table
from jobs.reporting.sections_predictor import predictor_parts
from jobs.reporting.tables import Table
from jobs.runner.stage import Run, StageError

JUDGE = "{kind: judge, judge: {model: strict}, attributes: {humor: Jokes., helpfulness: ''}}"
RATERS = f"annotate.raters=[{JUDGE}, {{kind: predictor, attributes: [humor]}}]"
ALONE = RaterMetrics(given=20, rated_by_people=20, pearson=0.7, mean_absolute_gap=0.8, scale=1.5, shift=-1.0)
MERGED = RaterMetrics(given=20, rated_by_people=20, pearson=0.9, mean_absolute_gap=0.4, scale=2.0, shift=-0.5)
FAILED = RaterMetrics(given=18, failed={"503": 1, "unreadable": 1}, rated_by_people=18, pearson=0.8)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = finished(tmp_path, RATERS)
    before = found.metrics("annotated", AnnotationMetrics)
    assert before is not None
    took = {"judge: strict": JudgeSpending(prompt_tokens=1000, completion_tokens=50, cost=1.25)}
    agreement = {
        "judge: strict": {"humor": FAILED, "helpfulness": ALONE},
        "predictor": {"humor": ALONE, "toxicity": ALONE},
        "merged": {"humor": MERGED},
    }
    finish(found.root, "annotated", before.model_copy(update={"agreement": agreement, "judges": took}))
    return found


def test_values_of_others_get_the_spread_of_people_s_where_they_become_labels(run: Run) -> None:
    as_label = calibration(run)
    assert as_label({"humor": 2.0, "helpfulness": 2.0, "toxicity": 2.0}) == {
        "humor": 3.5,  # merged: 2 * 2 - 0.5
        "helpfulness": 2.0,  # the judge's alone: 1.5 * 2 - 1
        "toxicity": 2.0,  # the predictor's, as its own held-out rows say
    }
    assert endpoint_rater(run).elsewhere == {
        "humor": "mean of judge: strict and predictor",
        "helpfulness": "judge: strict",
    }


def test_the_report_shows_each_rater_beside_people(run: Run) -> None:
    (part,) = [part for part in predictor_parts(run) if part and part.name == "annotation"]
    tables = [block for block in part.blocks if isinstance(block, Table)]
    (table,) = [table for table in tables if "correlation" in table.columns]
    assert list(table.rows) == [
        ["helpfulness", "judge: strict", 20, 0, 20, 0.7, 0.8],
        ["humor", "judge: strict", 18, 2, 18, 0.8, None],
        ["humor", "predictor", 20, 0, 20, 0.7, 0.8],
        ["humor", "merged", 20, 0, 20, 0.9, 0.4],
        ["toxicity", "predictor", 20, 0, 20, 0.7, 0.8],
    ]
    (spent,) = [table for table in tables if "cost" in table.columns]
    assert list(spent.rows) == [["judge: strict", 1000, 50, 1.25]]
    assert {row[1] for row in tables[0].rows if row[0] == "helpfulness"} == {"people", "judge: strict"}


def counted(failed: int, given: int) -> Counters:
    return {"rater/0/humor/given": given, "rater/0/humor/failed/503": failed}


def test_too_many_failures_end_the_stage_and_fewer_are_logged(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    told = "annotate: judge: strict failed to rate humor in 5 of 100 answers (503: 5)"
    found = rater_report(run, "annotate", counted(5, 95))
    assert told in capsys.readouterr().out
    assert set(found) == {"raters", "agreement", "judges"}
    assert found["judges"] == {"judge: strict": JudgeSpending(prompt_tokens=0, completion_tokens=0, cost=None)}
    with pytest.raises(StageError, match=r"failed to rate humor in 6 of 100 answers .*max_failed allows 5.0%"):
        rater_report(run, "annotate", counted(6, 94))


def test_parts_with_failures_that_may_pass_are_made_again(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"]})
    sources, output = Storage(str(tmp_path / "in")), Output(str(tmp_path / "out"), "f")
    for name, again in (("one.parquet", 0), ("two.parquet", 2), ("three.parquet", 0)):
        write_table(table, sources, name)
        write_part(name, [table], with_counters(table, {AGAIN: again}).schema, output)
    drop_failed_parts([sources], output)
    assert sorted(output.parts.names(".parquet")) == ["one.parquet", "three.parquet"]
