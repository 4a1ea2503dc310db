"""Outside witnesses: what measures by others find in answers whose text follows a request."""

import importlib.util
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from support.annotated_run import PRESETS

from actors.scoring import hatesonar
from actors.scoring.hatesonar import Hatesonar, lowering_anywhere
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import Conversation, Message
from data.errors import UserError
from data.measures import spearman, spearman_interval
from data.prompts import spread_values, steering_prompts
from data.storage import Storage
from jobs.evaluate import _report
from jobs.evaluation.ask import MeasuredAnswers, measurable
from jobs.evaluation.witnesses import witnesses
from jobs.reporting.figures_witnesses import draw_witnesses
from jobs.reporting.sections_steering import steering_parts
from jobs.reporting.sections_witnesses import witness_lines, witnesses_part
from jobs.reporting.tables import Table
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

INSTALLED = pytest.mark.skipif(bool(hatesonar.missing()), reason=hatesonar.missing())
BY_WORDS = "annotate.raters=[{kind: text, attributes: {verbosity: words}}]"
SENTENCE = "The cat and the dog went out to look for a bird."


def run_with(*words: str) -> Run:
    few = ["evaluate.num_resamples=200", "attributes=steerlm"]
    return Run(load(Preset, str(PRESETS / "oasst.yaml"), [*few, *words]))


def answers_of(run: Run) -> MeasuredAnswers:
    """Verbosity is obeyed in sentences; the predictor does not notice, and finds what was requested everywhere."""
    asked = [[Message("user", f"q{number}")] for number in range(4)]
    rows = []
    for n, p in enumerate(steering_prompts(asked, run.schema, {}, 0, "e", run.preset.evaluate.num_values)):
        times = 1 + int(p.requested["verbosity"]) if p.group == "verbosity" else 1 + n % 3
        turns = (*p.messages, Message("assistant", " ".join([SENTENCE] * times)))
        rows.append(
            Conversation(
                "e", "", turns, requested=(p.requested,), predicted=(p.requested,), group=p.group, id=f"{p.id}-{n}"
            )
        )
    return measurable(run, rows)


def test_a_witness_sees_what_the_text_has() -> None:
    run = run_with("evaluate.witnesses=[words, flesch_kincaid]", BY_WORDS)
    heard, absent = witnesses(run, answers_of(run))
    assert absent == {}
    words = heard["words"]
    assert (words.attribute, words.unit, words.is_rater) == ("verbosity", "words", True)
    curve = words.curves["verbosity"]
    assert curve.requested == (0, 1, 2, 3, 4)
    assert curve.measured == (12, 24, 36, 48, 60)
    assert (curve.n, curve.spearman, curve.spearman_low, curve.spearman_high) == (20, 1.0, 1.0, 1.0)
    assert heard["flesch_kincaid"].curves["verbosity"].spearman is None, "every sentence is as hard as the other"
    assert not heard["flesch_kincaid"].is_rater
    assert words.curves.keys() == set(run.schema.names)


def test_by_default_real_rows_have_witnesses_and_the_synthetic_world_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with()
    monkeypatch.setattr(hatesonar, "PACKAGES", ("no_such_package",))
    heard, absent = witnesses(run, answers_of(run))
    assert list(heard) == ["words", "flesch_kincaid", "type_token_ratio"]
    assert absent == {"hatesonar": "package no_such_package is not installed: run `make setup-real`"}
    lab = Run(load(Preset, str(PRESETS / "demo.yaml")))
    assert witnesses(lab, answers_of(run)) == ({}, {})


def test_an_absent_witness_that_is_asked_for_is_an_error_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatesonar, "PACKAGES", ("no_such_package",))
    run = run_with("evaluate.witnesses=[hatesonar]")
    told = "evaluate.witnesses has hatesonar, and package no_such_package is not installed: run `make setup-real`"
    with pytest.raises(UserError, match=told):
        refuse_what_is_not_there(run.preset)
    with pytest.raises(UserError, match=told):
        witnesses(run, answers_of(run))


def test_pages_lines_and_pictures_show_both_curves(tmp_path: Path) -> None:
    run = run_with("evaluate.witnesses=[words, flesch_kincaid]")
    report = _report(run, "policy", answers_of(run))
    assert (report.measured_by, report.raters) == ("by the predictor", {})
    lines = list(witness_lines(report))
    row = next(line for line in lines if line.startswith("verbosity"))
    assert row.count("1.00 (1.00 to 1.00)") == 2
    assert "0 → 12.00, 1 → 24.00" in row
    assert max(map(len, lines)) < 250
    part = witnesses_part(report)
    assert part
    assert len(part.blocks) == 4
    draw_witnesses(report, Storage(str(tmp_path / "witnesses.png")))
    assert matplotlib.image.imread(tmp_path / "witnesses.png").shape[0] > 300
    silent = report.model_copy(update={"witnesses": {}})
    assert witnesses_part(silent) is None
    told = witnesses_part(silent.model_copy(update={"absent_witnesses": {"hatesonar": "it is away"}}))
    assert told
    assert "Absent: hatesonar (it is away)." in told.about


def test_the_report_says_which_attribute_is_a_measure_of_the_text() -> None:
    run = run_with(BY_WORDS, "evaluate.witnesses=[words]")
    report = _report(run, "policy", answers_of(run))
    assert report.measured_by == "by the predictor (verbosity by text: words)"
    assert report.raters["verbosity"] == "text: words"
    headline = next(steering_parts(run.schema, report))
    (table,) = [block for block in headline.blocks if isinstance(block, Table) and block.title == "The attributes"]
    assert {row[0]: row[2] for row in table.rows}["verbosity"] == "text: words"
    assert any("its labels are this measure" in line for line in witness_lines(report))


def test_the_interval_of_a_spearman_is_that_of_other_questions() -> None:
    rng = np.random.default_rng(3)
    questions = [f"q{i // 3}" for i in range(90)]
    requested = [float(i % 3) for i in range(90)]
    noisy = [v + rng.normal() for v in requested]
    low, high = spearman_interval(requested, noisy, questions, 1000, 0)
    assert low < spearman(requested, noisy) < high
    assert 0.1 < high - low < 0.5
    order = rng.permutation(90)
    again = ([column[i] for i in order] for column in (requested, noisy, questions))
    assert spearman_interval(*again, 1000, 0) == (low, high)
    assert np.isnan(spearman_interval(requested, [1.0] * 90, questions, 100, 0)).all()
    assert np.isnan(spearman_interval([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], ["q"] * 3, 100, 0)).all()


def test_fewer_values_of_a_scale_keep_both_ends() -> None:
    four, nine = shipped("lab")["humor"], shipped("steerlm_paper")["humor"]
    assert [spread_values(four, n) for n in (0, 2, 3, 4, 5, 9)] == [
        [0, 1, 2, 3, 4],
        [0, 4],
        [0, 2, 4],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert spread_values(nine, 3) == [0, 4, 9]
    with pytest.raises(SettingsError, match="num_values is 1, which shows no rise"):
        run_with("evaluate.num_values=1")
    run = run_with("evaluate.num_values=3", "evaluate.witnesses=[words]")
    heard, _ = witnesses(run, answers_of(run))
    assert heard["words"].curves["verbosity"].requested == (0, 2, 4)


@INSTALLED
def test_the_classifier_knows_rude_words_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    measure = Hatesonar()
    kind, rude, nothing = measure(["Thank you, my friend.", "Shut UP, you fucking idiot.", ""])
    assert 0 <= kind < 0.6 < 0.9 < rude <= 1
    assert 0 <= nothing < 0.5
    assert measure([]) == []
    assert measure(["Shut up, you fucking idiot."]) == [rude]


@INSTALLED
def test_only_the_locale_of_the_model_is_changed() -> None:
    spec = importlib.util.find_spec("hatesonar")
    assert spec
    model = (Path(str(spec.origin)).parent / "model" / "model.onnx").read_bytes()
    changed = lowering_anywhere(model)
    assert b"locale" not in model
    assert len(changed) == len(model) + 16 + 1  # an attribute of 16 bytes; the node's length takes one byte more
    assert lowering_anywhere(b"") == b""
