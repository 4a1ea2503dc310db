"""A rater's values on people's scale: which curve is fitted on which answers, and which labels come of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.finished_run import finished
from support.manifests import finish

from cluster.settings.errors import SettingsError
from data.calibration import MIN_PAIRS, Calibration
from data.conversation import Conversation, Message, to_table
from data.examples import bucket
from data.rater_fit import RaterFit, isotonic, rater_fit
from data.rater_metrics import RaterMetrics
from data.stage_metrics import AnnotationMetrics
from jobs.evaluation.held_out import num_buckets
from jobs.evaluation.rater_fits import rater_fits
from jobs.pipelines.annotation import calibration
from jobs.pipelines.map_rows import write_table
from jobs.reporting.sections_predictor import predictor_parts
from jobs.reporting.tables import Table
from jobs.runner.stage import Run

NAN = float("nan")


def judged(kind: str) -> str:
    """A judge gives helpfulness and, with the predictor, humor."""
    judge = f"kind: judge, judge: {{model: strict}}, attributes: {{humor: Jokes., helpfulness: ''}}, calibrate: {kind}"
    return f"annotate.raters=[{{{judge}}}, {{kind: predictor, attributes: [humor]}}]"


def test_an_isotonic_fit_never_falls_and_is_the_mean_of_what_would() -> None:
    values, human = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 1.0, 4.0])
    assert isotonic(human, values) == ((1, 0), (2, 1.5), (3, 1.5), (4, 4))


def test_equal_values_count_as_often_as_they_are_there_and_flat_stretches_have_two_points() -> None:
    values = np.array([1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    human = np.array([0.0, 0.0, 3.0, 0.0, 0.5, 0.0, 4.0])
    assert isotonic(human, values) == ((1, 0.583333), (4, 0.583333), (5, 4))
    falling = isotonic(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    assert falling == ((1, 2), (3, 2)), "a rater that means the opposite gets people's mean"


def answers(num: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People's values, a rater's that are their squares, and whether to fit on them."""
    human_N = np.linspace(0, 4, num)
    return human_N, human_N**2, np.arange(num) % 5 != 0


@pytest.mark.parametrize(("kind", "least", "most"), [("isotonic", 0, 0.03), ("linear", 0.1, 0.5), ("none", 3, 4)])
def test_errors_are_those_on_answers_that_were_not_fitted_on(kind: Any, least: float, most: float) -> None:
    human_N, values_N, trained_N = answers()
    fit = rater_fit("judge: strict", kind, "humor", human_N, values_N, trained_N)
    assert (fit.n, fit.held_out) == (160, 40)
    assert fit.error_before == pytest.approx(np.abs(human_N - values_N)[~trained_N].mean(), abs=1e-4)
    assert fit.error_after is not None
    assert least < fit.error_after < most
    human_N[~trained_N] = 0
    again = rater_fit("judge: strict", kind, "humor", human_N, values_N, trained_N)
    assert again.calibration == fit.calibration, "they change nothing of the fit"


def test_a_linear_fit_has_people_s_mean_and_spread() -> None:
    human_N, values_N, trained_N = answers()
    found = rater_fit("judge: strict", "linear", "humor", human_N, values_N, trained_N).calibration
    fitted_N = found.of("humor", values_N[trained_N])
    assert fitted_N.mean() == pytest.approx(human_N[trained_N].mean(), abs=1e-4)
    assert fitted_N.std() == pytest.approx(human_N[trained_N].std(), abs=1e-4)


def test_too_few_or_equal_values_stay_as_they_are() -> None:
    human_N, values_N, trained_N = answers(MIN_PAIRS - 1)
    for kind in ("isotonic", "linear"):
        fit = rater_fit("judge: strict", kind, "humor", human_N, values_N, np.ones_like(trained_N))
        assert (fit.calibration, fit.n, fit.error_after) == (Calibration(), MIN_PAIRS - 1, None)
    human_N, values_N, trained_N = answers()
    values_N[::2] = NAN
    human_N[1::4] = NAN
    assert rater_fit("judge: strict", "linear", "humor", human_N, values_N, trained_N).n == 40
    flat = rater_fit("judge: strict", "linear", "humor", answers()[0], np.full(200, 2.0), trained_N)
    assert flat.calibration.scale == {"humor": 1.0}


# --- in a run ---------------------------------------------------------------------------------------------------------


def row(run: Run, number: int) -> Conversation:
    """The judge gives the square of what people gave; in held-out rows people say the opposite."""
    question = f"Question {number}?"
    value = number % 5
    human = 4 - value if bucket(question, num_buckets(run)) == 0 else value
    return Conversation(
        "s",
        "",
        (Message("user", question), Message("assistant", "So.")),
        human=({"humor": float(human), "helpfulness": float(human)},),
        predicted=({"humor": value / 2, "helpfulness": float(value**2)},),
        group=question,
    )


def test_a_run_fits_on_rows_that_the_predictor_does_not_hold_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path, judged("isotonic"))
    rows = [row(run, number) for number in range(400)]
    folder = run.root / "judged" / "rows"
    write_table(to_table(rows, run.schema), folder, "one.parquet")
    num_held_out = sum(bucket(one.group, num_buckets(run)) == 0 for one in rows)
    assert 0 < num_held_out < 100
    fits = rater_fits(run, folder)
    assert {name: (fit.rater, fit.kind, fit.n, fit.held_out) for name, fit in fits.items()} == {
        "helpfulness": ("judge: strict", "isotonic", 400 - num_held_out, num_held_out),
        "humor": ("merged", "isotonic", 400 - num_held_out, num_held_out),
    }
    assert fits["helpfulness"].calibration.points == {"helpfulness": ((0, 0), (1, 1), (4, 2), (9, 3), (16, 4))}
    assert fits["humor"].calibration({"humor": 1.25}) == {"humor": 2.5}
    assert "annotate: humor of merged, isotonic fit on" in capsys.readouterr().out
    assert rater_fits(finished(tmp_path / "other", judged("null")), folder) == {}


FIT = RaterFit(
    rater="judge: strict",
    kind="isotonic",
    calibration=Calibration(points={"helpfulness": ((0.0, 0.0), (16.0, 4.0))}),
    n=300,
    held_out=30,
    error_before=2.5,
    error_after=0.25,
)
UNFITTED = FIT.model_copy(update={"rater": "merged", "kind": "none", "calibration": Calibration()})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """With fits in its manifest, and what all rows say beside them."""
    found = finished(tmp_path, judged("isotonic"))
    before = found.metrics("annotated", AnnotationMetrics)
    assert before is not None
    alone = RaterMetrics(given=20, rated_by_people=20, scale=1.5, shift=-1.0)
    agreement = {"judge: strict": {"humor": alone, "helpfulness": alone}, "merged": {"humor": alone}}
    fits = {"helpfulness": FIT, "humor": UNFITTED}
    finish(found.root, "annotated", before.model_copy(update={"agreement": agreement, "fits": fits}))
    return found


def test_labels_follow_the_fits_of_the_manifest(run: Run) -> None:
    assert calibration(run)({"helpfulness": 8.0, "humor": 2.0}) == {"helpfulness": 2.0, "humor": 2.0}


def test_the_report_shows_errors_before_and_after(run: Run) -> None:
    (part,) = [part for part in predictor_parts(run) if part and part.name == "annotation"]
    (table,) = [t for t in part.blocks if isinstance(t, Table) and "error after" in t.columns]
    assert list(table.rows) == [
        ["helpfulness", "judge: strict", "isotonic", 300, 30, 2.5, 0.25],
        ["humor", "merged", "none", 300, 30, 2.5, 0.25],
    ]


PYTHON = "{kind: python, function: a.b, attributes: [humor], calibrate: linear}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([judged("isotonic"), "policy.calibrate=false"], "calibrate is set, but policy.calibrate is false"),
        ([judged("isotonic"), "policy.spread_labels=true"], "calibrate is set, but policy.spread_labels gives labels"),
        ([judged("isotonic").replace("}]", f"}}, {PYTHON}]")], "calibrate differs from that of another rater of humor"),
        ([judged("cubic")], "'isotonic', 'linear' or 'none'"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises((SettingsError, ValueError)) as raised:
        finished(tmp_path, *overrides)
    assert words in str(raised.value)
