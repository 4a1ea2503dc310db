"""The stage `report`: in the synthetic world with models of random weights, elsewhere from rated answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from support.annotated_run import PRESETS, ready
from support.finished_run import TRAINING, finished

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import Conversation, Message, from_table
from data.prompts import COMBINED, combined_settings, requested_prompts, steering_prompts
from data.run_layout import MODEL, write_record
from data.run_layout import TRAINING as TRAINING_FILE
from data.stage_metrics import PolicyMetrics, SamplingMetrics
from data.storage import Storage
from jobs.evaluate import _report, require_steering, stage
from jobs.evaluation.ask import MeasuredAnswers, measurable
from jobs.evaluation.guidance import _line
from jobs.evaluation.steering_metrics import cross_talk, curves, judge
from jobs.reporting.figures_steering import draw_cross_talk, draw_judge, draw_steering
from jobs.reporting.sections_steering import report_lines
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError, _description, perform

SMALL = (
    *(
        "rows.lab.num_rows=40",
        "sampling.max_tokens=8",
        "sampling.pool.num_actors=1",
        "annotate.pool.num_actors=1",
        "bootstrap.rounds=0",
    ),
    *(
        "evaluate.num_questions=2",
        "evaluate.num_combinations=2",
        "evaluate.num_dialogues=1",
        "evaluate.num_resamples=100",
    ),
)


def _policy_stage(policy: str) -> Stage:
    def work(run: Run, folder: Storage) -> PolicyMetrics:
        (folder / MODEL).upload(policy)
        write_record(folder / TRAINING_FILE, TRAINING)
        return PolicyMetrics(training=TRAINING, counts={})

    return Stage("policy", ("rows",), lambda preset: {"from": policy}, work)


def _obedient(run: Run) -> MeasuredAnswers:
    """Answers that have just what was asked, and a predictor that says half of it."""
    asked = [[Message("user", f"q{number}")] for number in range(3)]
    together = [(COMBINED, values) for values in combined_settings(run.schema, run.schema.best(), 3, 0)]
    prompts = steering_prompts(asked, run.schema, run.schema.best(), 0, "e") + requested_prompts(
        asked, together, 0, "e"
    )
    rows = []
    for p in prompts:
        half = {name: value / 2 for name, value in p.requested.items()}
        turns = (*p.messages, Message("assistant", "a"))
        rows.append(Conversation("e", "", turns, requested=(p.requested,), predicted=(half,), group=p.group, id=p.id))
    return measurable(run, rows)


def test_a_run_that_steers_worse_than_required_fails_after_its_report(tmp_path: Path) -> None:
    """In the made-up report four attributes are at .9321, and one does not move."""
    run = finished(tmp_path)
    require_steering(run)
    with pytest.raises(StageError, match=r"evaluate\.min_spearman 0\.9: verbosity none; the report is in .*/report"):
        require_steering(_with(run, "evaluate.min_spearman=0.9"))
    with pytest.raises(StageError, match=r"0\.95: helpfulness 0\.932, creativity .*, verbosity none"):
        require_steering(_with(run, "evaluate.min_spearman=0.95"))


def test_the_required_spearman_reruns_no_stage(tmp_path: Path) -> None:
    run = finished(tmp_path)
    other = _with(run, "evaluate.min_spearman=0.9")
    assert _description(run, stage(run.preset)) == _description(other, stage(other.preset))


def _with(run: Run, *overrides: str) -> Run:
    return Run(load(Preset, str(PRESETS / "demo.yaml"), [f"storage={run.preset.storage}", *overrides]))


@pytest.mark.ray
def test_the_whole_report_in_the_synthetic_world(
    ray_cluster: object, tiny_predictor: str, tiny_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready(str(tmp_path), tiny_predictor, *SMALL)
    perform(run, _policy_stage(tiny_policy))
    perform(run, stage(run.preset))
    folder = run.folder("report")
    report = (folder / "report.json").read_json()
    _check_parts(report, list(run.schema.names))
    num_answers = 2 * (26 + 2) + 10
    assert report["counts"] == {"questions": 2, "answers": num_answers}
    assert {row["everywhere"]["n"] for row in report["judge"].values()} == {num_answers}
    dialogues = [row for table in (folder / "dialogue" / "rated").tables() for row in from_table(table)]
    first = {row.messages for table in (folder / "rated").tables() for row in from_table(table)}
    assert len(dialogues) == 10
    assert all(row.messages[:2] in first and len(row.messages) == 4 for row in dialogues), (
        "the first answers are the policy's own"
    )
    for picture in ("steering.png", "cross_talk.png", "judge.png", "losses.png"):
        assert matplotlib.image.imread((folder / picture).path).shape[0] > 300
    assert "## Steering" in (run.folder("policy") / "model" / "README.md").read_text()
    out = capsys.readouterr().out
    assert "evaluate: 2 questions at 28 settings, 2 of them of several attributes: 56 answers" in out
    assert report["judge_note"] in out


@pytest.mark.ray
@pytest.mark.slow
def test_guidance_is_measured_on_the_report_s_own_questions(
    ray_cluster: object, tiny_predictor: str, tiny_policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready(str(tmp_path), tiny_predictor, *SMALL, "evaluate.guidance=[1,3]")
    perform(run, _policy_stage(tiny_policy))
    perform(run, stage(run.preset))
    folder = run.folder("report")

    def texts(answers: Storage) -> dict[str, str]:
        return {row.id: row.messages[-1].content for table in answers.tables() for row in from_table(table)}

    of_report, none, guided = (texts(folder / name) for name in ("rated", "guidance/1/rated", "guidance/3/rated"))
    assert len(none) == 2 * 26
    assert none == {name: text for name, text in of_report.items() if name in none}, "guidance 1 changes nothing"
    assert set(guided) == set(none)
    assert guided != none
    found = (folder / "report.json").read_json()["guidance"]
    assert [(line["guidance"], line["answers"]) for line in found] == [(1, 52), (3, 52)]
    assert all(line["tokens_per_s"] > 0 and line["quality"] is not None for line in found)
    out = capsys.readouterr().out
    assert "What guidance gains and costs" in out
    assert "What guidance gains and costs" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    "setting", ["sampling.guidance=1.5", "evaluate.guidance=[1,2]", "sampling.guidance_from.humor=0"]
)
def test_guidance_that_is_off_changes_no_fingerprint(setting: str, tmp_path: Path) -> None:
    run = finished(tmp_path)
    plain = _description(run, stage(run.preset))
    assert "guidance" not in json.dumps(plain)
    one = _with(run, "sampling.guidance=1")
    assert _description(one, stage(one.preset)) == plain
    other = _with(run, setting, *(["sampling.guidance=2"] if "from" in setting else []))
    assert _description(other, stage(other.preset)) != plain


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (["sampling.guidance=11"], "sampling.guidance"),
        (["sampling.guidance=2", "sampling.engine.max_num_seqs=1"], "takes the places of two"),
        (["sampling.guidance_from.humor=1"], "no effect without sampling.guidance"),
        (["sampling.guidance=2", "sampling.guidance_from.wit=1"], "sampling.guidance_from: unknown attribute 'wit'"),
        (["evaluate.guidance=[1,1]"], "evaluate.guidance is empty or has a strength twice"),
        (["evaluate.guidance=[]"], "evaluate.guidance is empty or has a strength twice"),
        (["sampling.guidance=2", "sampling.engine.kind=vllm"], "sampling.engine.kind asks for vLLM"),
        (["evaluate.guidance=[1,2]", "sampling.engine.quantization=fp8"], "sampling.engine.quantization asks for vLLM"),
        (
            ["evaluate.guidance=[1,2]", "sampling.engine.max_num_seqs=1"],
            "evaluate.guidance is set, and a guided answer takes",
        ),
        (["evaluate.guidance_from.humor=1"], "no effect without evaluate.guidance"),
        (["evaluate.guidance=[2]", "evaluate.guidance_from.humor=9"], "evaluate.guidance_from: .*humor"),
    ],
)
def test_guidance_that_cannot_work_is_refused_by_its_setting(settings: list[str], wrong: str) -> None:
    with pytest.raises(SettingsError, match=wrong):
        load(Preset, str(PRESETS / "demo.yaml"), settings)


def test_the_numbers_of_a_strength_are_those_of_its_answers() -> None:
    """The made-up answers have just what was requested, and the predictor says half of it."""
    run = Run(load(Preset, str(PRESETS / "demo.yaml"), []))
    answers = replace(_obedient(run), measure=lambda row: row.requested[-1])
    sampled = SamplingMetrics.model_construct(tokens=300, cut_off=2, actor_seconds=4.0, cpu_seconds=3.0)
    line = _line(run, 1.5, sampled, answers)
    assert set(line.slopes.values()) == {1.0}
    assert (line.slope, line.spearman, line.gap, line.tokens_per_s, line.cut_off) == (1.0, 1.0, 0.0, 75.0, 2)
    assert line.tokens_per_cpu_s == 100.0
    assert (line.at_best, line.quality, line.others_move) == (4.0, 2.0, 0.0)
    halved = _line(run, 1.5, sampled, replace(answers, measure=lambda row: row.predicted[-1]))
    assert (halved.slope, halved.gap) == (0.5, 1.0)


def _check_parts(report: dict[str, Any], names: list[str]) -> None:
    assert set(report) == {
        *("policy", "policy_stage", "measured_by", "requested_best", "at_best_settings", "steering"),
        *("cross_talk", "combined", "dialogue", "judge", "judge_note", "length", "rounds", "counts"),
        *("witnesses", "absent_witnesses", "raters", "guidance"),
    }
    assert all(list(report[part]) == names for part in ("steering", "dialogue", "judge", "length"))
    keys = {
        "requested",
        "measured",
        "low",
        "high",
        "n",
        "spearman",
        "spearman_low",
        "spearman_high",
        "monotonic",
        "slope",
        "reached",
        "mean_absolute_gap",
        "movement",
    }
    for row in report["steering"].values():
        assert set(row) == keys
        assert (row["n"], len(row["low"]), len(row["high"])) == (10, 5, 5)
    assert [setting["n"] for setting in report["combined"]] == [2, 2]
    assert all((row["first"], row["second"], row["n"]) == ([0, 4], [4, 0], 2) for row in report["dialogue"].values())
    assert {row["n"] for row in report["judge"].values()} == {10 + 4 + 2}
    assert report["judge_note"].startswith("Under a Spearman of 0.9")
    assert "NaN" not in json.dumps(report)


def test_outside_the_synthetic_world_the_predictor_measures_and_nobody_judges_it() -> None:
    run = Run(load(Preset, str(PRESETS / "oasst.yaml"), ["evaluate.num_resamples=100"]))
    report = _report(run, "policy", _obedient(run))
    assert report.measured_by == "by the predictor"
    assert report.judge == {}
    assert report.judge_note == ""
    assert report.dialogue == {}, "none was held"
    assert report.steering["humor"].measured == (0, 0.5, 1, 1.5, 2)
    assert report.steering["humor"].slope == 0.5
    assert len(report.combined) == 3
    lines = list(report_lines(report))
    assert "steering, measured by the predictor" in lines[0]
    assert not any("judge" in line for line in lines)


@pytest.mark.parametrize("name", ["lab", "steerlm", "steerlm_paper"])
def test_pictures_and_tables_fit_any_schema(name: str, tmp_path: Path) -> None:
    schema = shipped(name)
    run = Run(load(Preset, str(PRESETS / "oasst.yaml"), [f"attributes={name}", f"bootstrap.leading={schema.names[0]}"]))
    answers = _obedient(run)
    told = replace(
        answers, measure=lambda row: {**row.requested[-1], schema.names[1]: 0.0}
    )  # one that nothing moves has no Spearman
    table, _ = curves(schema, told, 100, 0)
    found = {"steering": table, "cross_talk": cross_talk(schema, told), "judge": judge(schema, told)}
    report = _report(run, "policy", answers).model_copy(update=found | {"judge_note": "all reach it"})
    assert report.steering[schema.names[1]].spearman is None
    assert report.cross_talk
    draw_steering("any", schema, report, Storage(str(tmp_path / "steering.png")))
    draw_cross_talk(report.cross_talk, Storage(str(tmp_path / "cross_talk.png")))
    draw_judge(schema, told, report.judge, Storage(str(tmp_path / "judge.png")))
    for picture in ("steering.png", "cross_talk.png", "judge.png"):
        height, width, _ = matplotlib.image.imread(tmp_path / picture).shape
        assert 400 < height < 2500
        assert 400 < width < 2500
    lines = list(report_lines(report))
    assert max(map(len, lines)) < 250
    assert "all reach it" in lines
