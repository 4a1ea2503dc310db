"""The ablation: which rows an arm has, what it is asked, how seeds are summed up; and, slow, all of it as a command."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny_run
from support.manifests import finish, training

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import Values, shipped
from data.conversation import Conversation, Message
from data.lab import LabSettings
from data.loader import copies
from data.stage_metrics import Drift, NotRun, PolicyMetrics
from data.steering_metrics import ArmMetrics, SeedSpread
from jobs.ablate import Ablation, stages
from jobs.ablation.arms import (
    ARMS,
    HELD_OUT,
    PAPER,
    _answers,
    _belongs,
    _followed,
    held_out_settings,
    repeated,
    rows_of_rounds,
)
from jobs.ablation.report import COLUMNS, lines, spearman_lines, summary, value_of
from jobs.evaluation.ask import MeasuredAnswers
from jobs.evaluation.request_gap import request_gap
from jobs.run import stages as run_stages
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Run, _description

SCHEMA = shipped("lab")
DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


def row(*human: Values) -> Conversation:
    turns = tuple(m for _ in human for m in (Message("user", "q"), Message("assistant", "a")))
    return Conversation("s", "", turns, human=human)


def test_which_rows_an_arm_has() -> None:
    preset = load(Preset, DEMO)
    best, mixed, unrated, other = (
        row({"helpfulness": 4}),
        row({"helpfulness": 4}, {"helpfulness": 3}),
        row({}),
        row({"humor": 4}),
    )

    def those_of(name: str, preset: Preset = preset) -> list[Conversation]:
        return [r for r in (best, mixed, unrated, other) if _belongs(r, ARMS[name], preset, SCHEMA)]

    assert those_of("sft") == those_of("human") == those_of("predicted") == [best, mixed, other]
    assert those_of("best") == [best]
    assert those_of("best", load(Preset, DEMO, ["bootstrap.leading_at_least=3"])) == [best, mixed]
    assert those_of("sources") == [best, mixed, unrated, other]


def test_seeds_share_what_is_made_once_and_differ_in_the_rest() -> None:
    preset = load(Ablation, DEMO, ["seeds=2"])
    by_name = {stage.name: stage for stage in stages(preset)}
    run = Run(preset)
    zero, one = (by_name[f"ablation/{seed}/human/policy"] for seed in range(2))
    assert zero.needs == one.needs
    assert zero.settings(preset)["seed"] == 0
    assert one.settings(preset)["seed"] == 1
    assert one.settings(preset)["policy"].learner.seed == 1
    assert run.preset.seed == 0
    assert len(by_name) == 4 + 2 * (5 * 2 + 5 + 1 + 2) + 1
    for name in by_name:
        assert all(need in by_name for need in by_name[name].needs), name


def test_the_runs_own_seed_takes_its_policy_and_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "manifest", lambda self, name: SimpleNamespace(fingerprint=name))
    ablation, run = load(Ablation, DEMO, ["seeds=2"]), load(Preset, DEMO)
    ours, theirs = ({stage.name: stage for stage in found} for found in (stages(ablation), run_stages(run)))
    shared = [name for name in theirs if name == "policy" or name.startswith("bootstrap-")]
    assert len(shared) == 6
    for name in shared:
        assert _description(Run(ablation), ours[name]) == _description(Run(run), theirs[name])
    assert "ablation/0/sources/policy" not in ours
    assert ours["ablation/0/sources/report"].needs == ("rows", "predictor", "policy")
    assert "bootstrap-1/policy" in ours["ablation/0/longer/policy"].needs
    assert {"ablation/1/sources/policy", "ablation/1/bootstrap-1/policy"} < ours.keys()
    another = load(Ablation, DEMO, ["seeds=1", "seed=3"])
    assert "ablation/0/sources/policy" in {stage.name for stage in stages(another)}


def test_with_one_seed_the_table_has_intervals_over_questions() -> None:
    found = {"human": {"quality": summary([3.0]), "mean_spearman": summary([0.5])}}
    columns: dict[str, SeedSpread | None] = {**dict.fromkeys(COLUMNS), **found["human"]}
    told = lines({"human": columns}, {"human": {"quality": (2.5, 3.25)}})
    assert "3.000 (2.500 to 3.250)" in told[1]
    assert "0.500 ± 0.000" in told[1]
    each = spearman_lines({"human": {"humor": summary([0.5])}}, {"human": {"humor": (0.25, 0.75)}})
    assert "0.500 (0.250 to 0.750)" in each[-1]
    assert spearman_lines({"sft": {"humor": None}}) == []


def test_people_are_no_ranks_among_predictions_and_sources_count_by_weight() -> None:
    assert _answers([row({}), row({}, {})], {"s": 0.5}) == 1.5
    assert _answers([row({})], {}) == 1.0


def test_an_arm_that_cannot_be_trained_is_refused() -> None:
    for wrong, said in {
        "arms=[plain]": "arms has plain; there are sft, human",
        "arms=[sources,longer]": "add bootstrap to arms",
        "bootstrap.rounds=0": "bootstrap.rounds is 0",
    }.items():
        with pytest.raises(SettingsError, match=said):
            load(Ablation, DEMO, [wrong])


def test_steerlm2_is_an_arm_if_it_is_named_and_trains_on_as_many_answers() -> None:
    plain = load(Ablation, DEMO)
    assert "steerlm2" in ARMS
    assert plain.arms == tuple(name for name in ARMS if name != "steerlm2")
    words = ["arms=[sources,bootstrap,steerlm2]", "seeds=2", "steerlm2_learning_rate=1e-4"]
    preset = load(Ablation, DEMO, words)
    by_name = {stage.name: stage for stage in stages(preset)}
    assert by_name["ablation/0/steerlm2/bootstrap-1/samples"].needs[-1] == "policy"
    assert by_name["ablation/1/steerlm2/bootstrap-1/samples"].needs[-1] == "ablation/1/sources/policy"
    for name in by_name:
        assert all(need in by_name for need in by_name[name].needs), name
    found = by_name["ablation/1/steerlm2/bootstrap-1/policy"].settings(preset)
    own = preset.bootstrap.learner
    assert (found["method"], found["learner"].seed, found["learner"].learning_rate) == ("steerlm2", 1, 1e-4)
    assert found["learner"].epochs == 2 * own.epochs, "one annotated row for each sample in a round of its own"
    for wrong, said in {
        "arms=[steerlm2]": "add sources to arms",
        "steerlm2_learning_rate=1e-3": "no effect without arm steerlm2",
        "bootstrap.method=steerlm2": "bootstrap.method is steerlm2, but arm bootstrap is by method steerlm",
    }.items():
        with pytest.raises(SettingsError, match=said):
            load(Ablation, DEMO, [wrong])
    with pytest.raises(SettingsError, match="samples_per_prompt is 1"):
        load(Ablation, DEMO, [*words, "bootstrap.samples_per_prompt=1"])


def test_the_gap_is_over_settings_of_one_attribute_and_of_all() -> None:
    def answer(group: str, question: str, **requested: float) -> Conversation:
        turns = (Message("user", question), Message("assistant", "a"))
        return Conversation("s", "", turns, requested=(requested,), group=group)

    rows = [
        answer("humor", "p", humor=4, toxicity=0),
        answer("combined", "p", humor=1, toxicity=1),
        answer("humor", "q", humor=2),
        answer("best", "q", humor=4),
    ]
    answers = MeasuredAnswers(rows, "exactly", lambda _: {"humor": 2.0, "toxicity": 1.0})
    gap, (low, high) = request_gap(Run(load(Preset, DEMO)), answers)
    assert gap == pytest.approx((1.5 + 0.5 + 0) / 3, abs=1e-4)
    assert low is not None
    assert high is not None
    assert low <= gap <= high
    assert request_gap(Run(load(Preset, DEMO)), MeasuredAnswers(rows[3:], "exactly", lambda _: {})) == (
        None,
        (None, None),
    )


def test_the_control_has_its_rows_again_where_they_do_not_suffice() -> None:
    weights = repeated({"b": 0.5}, {"a", "b"}, 8_000 / 6_000)
    assert weights == {"a": pytest.approx(4 / 3), "b": pytest.approx(2 / 3)}
    copied = sum(copies(f"{i}", weights["a"], seed=0, epoch=0) for i in range(6_000))
    assert copied == pytest.approx(8_000, rel=0.02)


def test_the_ablation_shares_the_stages_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "manifest", lambda self, name: SimpleNamespace(fingerprint=name))
    ablation, run = load(Ablation, DEMO), load(Preset, DEMO)
    for stage in stages(ablation)[:4]:
        assert _description(Run(ablation), stage) == _description(Run(run), stage)


def test_what_never_occurs_together_is_asked_for() -> None:
    assert held_out_settings(LabSettings(), SCHEMA) == []
    asked = held_out_settings(LabSettings(hold_out_helpful_humor=True), SCHEMA)
    assert [(a["helpfulness"], a["humor"]) for a in asked] == [(h, j) for h in (3, 4) for j in (2, 3, 4)]
    assert {(a["toxicity"], a["verbosity"]) for a in asked} == {(0, 1)}


def test_how_near_the_answers_come_to_it() -> None:
    turns = (Message("user", "q"), Message("assistant", "a"))
    rows = [
        Conversation("s", "", turns, requested=({"helpfulness": 4.0, "humor": 2.0},), group=group)
        for group in (HELD_OUT, "best")
    ]
    found = _followed(MeasuredAnswers(rows, "exactly", lambda _: {"helpfulness": 3.0, "humor": 2.0}), SCHEMA)
    assert found
    assert (found.answers, found.mean_absolute_gap) == (1, 0.5)
    assert _followed(MeasuredAnswers(rows[1:], "exactly", lambda _: {}), SCHEMA) is None


def test_the_control_has_as_many_rows_as_the_rounds_however_many_epochs(tmp_path: Path) -> None:
    """`training.examples` counts every epoch again: with it a control of three epochs had nine times the training."""
    run = Run(load(Ablation, DEMO, ["bootstrap.rounds=2", f"storage={tmp_path}"]))
    trained = PolicyMetrics(training=training(examples=300, epochs=3), counts={"examples": 100})
    finish(run.root, "x/bootstrap-1/policy", trained)
    fell = ("distinct-2",)
    finish(run.root, "x/bootstrap-2/policy", NotRun(promoted=False, fell=fell, policy="policy", not_run=fell))
    assert rows_of_rounds(run, Rounds("x/", "policy")) == 100


def test_mean_and_spread_over_seeds() -> None:
    assert summary([1.0, 3.0, None]) == SeedSpread(mean=2.0, sd=round(2**0.5, 4))
    assert summary([1.0]) == SeedSpread(mean=1.0, sd=0.0)
    assert summary([None, float("nan")]) is None


def test_the_table_leaves_out_what_no_arm_has() -> None:
    report = ArmMetrics(
        policy="policy",
        tokens=5,
        quality=3.0,
        gap_at_best=0.2,
        at_best_settings={},
        measured_by="exactly",
        spearman={},
        mean_spearman=None,
        mean_absolute_gap=None,
        held_out=None,
        drift=Drift(texts=1, words=9.0, distinct_1=0.5, distinct_2=0.5),
    )
    columns = (
        "quality",
        "gap_at_best",
        "mean_spearman",
        "mean_absolute_gap",
        "request_gap",
        "held_out",
        "distinct_2",
        "words",
        "tokens",
    )
    found = lines({"sft": {column: summary([value_of(report, column)]) for column in columns}})
    assert "true quality" in found[0]
    assert "steering" not in found[0]
    assert found[1].startswith("plain SFT")
    assert "3.000 ± 0.000" in found[1]


@pytest.mark.slow
def test_the_ablation_as_a_command(tmp_path: Path) -> None:
    """Every arm once, on next to nothing; then again with nothing to do."""
    command = [
        sys.executable,
        "-m",
        "jobs.ablate",
        "jobs/presets/demo.yaml",
        f"storage={tmp_path}",
        *tiny_run.TINY,
        "seeds=1",
    ]
    command += ["rows.lab.hold_out_helpful_humor=true", "bootstrap.min_count=0"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tiny_run.REPOSITORY, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        result = json.loads(done.stdout.splitlines()[-1])
        assert list(result["arms"]) == list(PAPER)
        assert all(arm["quality"] and arm["tokens"]["mean"] > 0 for arm in result["arms"].values())
        assert result["arms"]["sft"]["mean_spearman"] is None
        assert result["arms"]["bootstrap"]["held_out"]
        assert Path(result["plot"]).stat().st_size > 500
    assert done.stdout.count("skipped") >= 23
