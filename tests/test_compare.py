"""The stages `compare/*` on tiny random models: the same questions for all, and the report's parts about them."""

import json
from pathlib import Path

import pytest
from support.annotated_run import PRESETS, predictor_stage
from support.chat_base import chat_base
from support.finished_run import TRAINING

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.compared import ComparedPair
from data.conversation import Conversation, from_table
from data.errors import UserError
from data.run_layout import MODEL, PAIRS, write_record
from data.run_layout import TRAINING as TRAINING_FILE
from data.stage_metrics import PolicyMetrics
from data.steering_metrics import BaselineMetrics, PreferenceMetrics
from data.storage import Storage
from jobs import evaluate
from jobs.annotate import STAGE as ANNOTATED
from jobs.compare import stages
from jobs.prepare import STAGE as ROWS
from jobs.pretrain import STAGE as BASE
from jobs.reporting.page import page_parts
from jobs.run import stages as run_stages
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.needs import needs
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, perform

SCHEMA = shipped("lab")
SMALL = [
    *("rows.lab.num_rows=60", "template=words", "base.pretrain=null", "sampling.max_tokens=8", "bootstrap.rounds=0"),
    *("sampling.pool.num_actors=1", "annotate.pool.num_actors=1", "evaluate.num_questions=2", "evaluate.num_values=2"),
    *("evaluate.num_combinations=0", "evaluate.num_dialogues=0", "evaluate.num_resamples=100"),
    *("evaluate.witnesses=[words,tokens]", "compare.baselines=[zero_shot]"),
]


def preset_with(*words: str) -> Preset:
    return load(Preset, str(PRESETS / "demo.yaml"), [*SMALL, *words])


def copied_policy(folder: str) -> Stage:
    def work(run: Run, target: Storage) -> PolicyMetrics:
        (target / MODEL).upload(folder)
        write_record(target / TRAINING_FILE, TRAINING)
        return PolicyMetrics(training=TRAINING, counts={})

    return Stage("policy", ("rows",), lambda preset: {"from": folder}, work)


def models(base: str, folder: Path) -> tuple[str, str]:
    """A policy and a predictor on `base` as training saves them."""
    from actors.modeling.policy import PolicyTask
    from actors.modeling.regressor import PredictorTask

    saved = str(folder / "policy"), str(folder / "predictor")
    for task, target in zip(
        (PolicyTask(base, SCHEMA, "words"), PredictorTask(base, SCHEMA, "words")), saved, strict=True
    ):
        module = task.build()
        task.save(module, module.state_dict(), target)
    return saved


def test_what_is_compared_is_said_before_the_report() -> None:
    names = [
        stage.name for stage in run_stages(preset_with("compare.baselines=[zero_shot,numbers]", "compare.questions=q"))
    ]
    assert names[-7:] == [
        *("policy", "compare/untrained", "compare/numbers/policy", "compare/zero_shot/report"),
        *("compare/numbers/report", "compare/preference/report", "report"),
    ]
    assert [stage.name for stage in stages(preset_with("compare.baselines=[]"))] == []
    wanted = needs(Run(preset_with("compare.questions=q")), ["compare/zero_shot/report", "compare/numbers/policy"])
    assert [demand.setting for demand in wanted.demands] == ["policy.learner", "annotate.pool", "sampling.pool"]


def test_the_report_needs_none_of_it() -> None:
    """So a comparison that is added later asks the policy nothing again."""
    report = run_stages(preset_with())[-1]
    without = run_stages(preset_with("compare.baselines=[]"))[-1]
    assert report.needs == without.needs
    assert report.settings(preset_with()) == without.settings(preset_with("compare.baselines=[]"))


def test_a_comparison_that_cannot_be_is_refused_before_the_run(tmp_path: Path) -> None:
    for words, told in {
        ("template=chat",): "compare.baselines needs a base model that is told values in words, and template is chat",
        ("template=chat", "compare={questions: q}"): "compare.questions needs a base model",
        ("compare.baselines=[numbers,numbers]",): "compare.baselines has one twice: numbers, numbers",
    }.items():
        with pytest.raises(SettingsError, match=told):
            preset_with(*words)
    missing = preset_with(f"compare.questions={tmp_path}/none.jsonl", f"storage={tmp_path}")
    with pytest.raises(UserError, match=r"compare.questions is .*none.jsonl"):
        refuse_what_is_not_there(missing)
    (tmp_path / "bad.jsonl").write_text('{"turns": []}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl"):
        refuse_what_is_not_there(preset_with(f"compare.questions={tmp_path}/bad.jsonl", f"storage={tmp_path}"))


@pytest.mark.ray
@pytest.mark.slow
def test_all_models_are_asked_the_same_and_the_report_shows_them(ray_cluster: object, tmp_path: Path) -> None:
    base = chat_base(str(tmp_path / "base"))
    policy, predictor = models(base, tmp_path)
    questions = tmp_path / "questions.jsonl"
    records = [{"question_id": n, "category": "c", "turns": [f"Tell me about bees {n}."]} for n in range(3)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = Run(
        preset_with(
            f"base.model={base}", f"storage={tmp_path}/runs", f"compare.questions={questions}", "compare.max_tokens=20"
        )
    )
    for stage in (ROWS, BASE, predictor_stage(predictor), ANNOTATED, copied_policy(policy), *stages(run.preset)):
        perform(run, stage)
    perform(run, evaluate.stage(run.preset))
    zero_shot = run.metrics("compare/zero_shot/report", BaselineMetrics)
    assert zero_shot
    assert zero_shot.counts == {"questions": 2, "answers": 2 * (1 + 2 * 5), "unseen": 2}
    assert list(zero_shot.steering) == list(SCHEMA.names)
    moved = zero_shot.steering["humor"].movement
    assert moved
    assert moved.deviation
    assert moved.questions == 2
    assert list(zero_shot.witnesses) == ["words", "tokens"]
    theirs = _prompts(run.folder("compare/zero_shot/report"))
    assert theirs == _prompts(run.folder("report")), "the same questions, settings and seeds"
    preference = run.metrics("compare/preference/report", PreferenceMetrics)
    assert preference
    assert preference.preferred.n + preference.unscored == preference.counts["questions"] == 3
    lines = (run.folder("compare/preference/report") / PAIRS).read_text().splitlines()
    pairs = [ComparedPair.model_validate_json(line) for line in lines]
    answers = [row for side in ("policy", "base") for row in _rows(run.folder("compare/preference/report") / side)]
    assert len(answers) == 6
    assert [pair.question for pair in pairs] == [f"Tell me about bees {n}." for n in range(3)]
    report = run.metrics("report", evaluate.ReportMetrics)
    assert report
    parts = {part.name: part for part in page_parts(run, report, run.folder("report"))}
    assert {"baselines", "preference"} < parts.keys()
    rows = [row for block in parts["baselines"].blocks for row in block.rows]  # type: ignore[union-attr]
    assert [row[0] for row in rows[:2]] == ["the policy", "zero-shot, told in words"]
    assert sum(block.kind == "quotes" for block in parts["preference"].blocks) == 3
    page = (run.folder("report") / "report.html").read_text()
    assert "Against the base model" in page


def _prompts(folder: Storage) -> set[tuple[str, str]]:
    """Id and group of each answer: the id is a digest of question, setting and seed."""
    return {(row.id, row.group) for row in _rows(folder)}


def _rows(folder: Storage) -> list[Conversation]:
    return [row for table in (folder / "rated").tables() for row in from_table(table)]
