"""Rounds of SteerLM 2.0: settings, stages, and which prompts can be weighed. Whole rounds: `make test-run`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attribute_likelihood import log_labels
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import Conversation, Message
from data.errors import UserError
from data.stage_metrics import LossPoint
from jobs import bootstrap
from jobs.evaluation.selection import SampledRow
from jobs.policy_training.steerlm2_stages import SteerLM2Stages
from jobs.policy_training.weighing import Weighable, _summary, group_of, together, weighable
from jobs.policy_training.weighted_sft import kl_of
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.needs import needs
from jobs.runner.plan import plan_lines
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError, _plain
from tests.support.manifests import training

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
SCHEMA = shipped("lab")
STEERLM2 = "bootstrap.method=steerlm2"


def _preset(*words: str) -> Preset:
    return load(Preset, DEMO, [STEERLM2, *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bootstrap.samples_per_prompt=1"], "samples_per_prompt is 1; set it to 2 or more"),
        (["bootstrap.annotated_per_sample=0.5"], "annotated_per_sample has no effect .* mixes no other rows in"),
        (["bootstrap.selection.min_words=3"], "selection has no effect .* only selection.unfinished counts"),
        (["bootstrap.start=base"], "start has no effect"),
        (["bootstrap.learner.packing=off"], "learner.packing is off; set it to on"),
        (["bootstrap.steerlm2.target={grace: 4}"], "steerlm2.target: unknown attribute 'grace'"),
        (["bootstrap.steerlm2.target={humor: 7}"], "steerlm2.target: attribute 'humor' got 7, out of range"),
        (["bootstrap.steerlm2.target={}"], "target names no attribute"),
        (["bootstrap.steerlm2.target={humor: 4}", "bootstrap.min_count=2"], "min_count has no effect .*target is set"),
        (["bootstrap.steerlm2.unconditional=policy"], "policy.attribute_dropout is 0"),
        (["sampling.guidance=2"], "guided answers do not have; leave sampling.guidance out"),
        (["bootstrap.method=steerlm", "bootstrap.steerlm2.unconditional=policy"], "method is steerlm; set method"),
    ],
)
def test_what_would_mean_nothing_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        _preset(*words)


def test_a_file_of_responses_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    preset = _preset(f"storage={tmp_path}", f"bootstrap.steerlm2.responses={tmp_path}/none.jsonl")
    with pytest.raises(UserError, match=r"bootstrap.steerlm2.responses is .*none.jsonl, but there is no such file"):
        refuse_what_is_not_there(preset)


def test_other_rounds_do_not_know_of_it() -> None:
    """Their fingerprints are made of these settings, and runs of older releases must keep their stages."""
    preset = load(Preset, DEMO)
    found = {stage.name.split("/")[1]: _plain(stage.settings(preset)) for stage in bootstrap.stages(preset)}
    assert list(found) == ["samples", "rated", "selected", "policy", "promotion"]
    assert set(found["samples"]) == {"bootstrap", "calibrate", "sampling", "seed"}
    assert set(found["samples"]["bootstrap"]) == {
        *("leading", "leading_at_least", "min_count", "num_prompts", "samples_per_prompt")
    }
    assert set(found["selected"]) == {"selection", "calibrate", "lab"}
    assert set(found["policy"]["bootstrap"]) == {"learner", "annotated_per_sample", "start"}
    assert "steerlm2" not in repr(found)


def test_the_stages_of_two_rounds() -> None:
    names = {stage.name: stage for stage in bootstrap.stages(_preset("bootstrap.rounds=2"))}
    assert list(names)[:3] == ["unconditional", "bootstrap-1/samples", "bootstrap-1/rated"]
    assert len(names) == 11
    assert "unconditional" in names["bootstrap-1/selected"].needs
    assert {"unconditional", "bootstrap-1/policy", "bootstrap-1/promotion"} < {*names["bootstrap-2/selected"].needs}
    own = _preset("bootstrap.steerlm2.unconditional=policy", "policy.attribute_dropout=0.1")
    [*found] = bootstrap.stages(own)
    assert "unconditional" not in {stage.name for stage in found}
    assert found[2].needs.count("policy") == 1
    changed = [
        stage.name
        for stage, other in zip(
            bootstrap.stages(_preset()), bootstrap.stages(_preset("bootstrap.steerlm2.target={humor: 4}")), strict=True
        )
        if _plain(stage.settings(_preset())) != _plain(other.settings(_preset("bootstrap.steerlm2.target={humor: 4}")))
    ]
    assert changed == ["bootstrap-1/samples"]


def test_the_plan_and_the_needs_name_its_workers() -> None:
    preset = _preset().model_copy(update={"storage": "memory://plans"})
    names = [stage.name for stage in bootstrap.stages(preset)]
    lines = {line.split()[0]: line for line in plan_lines(Run(preset), names)}
    assert "Ray Train workers" in lines["unconditional"]
    assert "log-probabilities of the answers, under two policies" in lines["bootstrap-1/selected"]
    assert [d.what for d in needs(Run(preset), ["unconditional"]).demands] == ["policy.learner"]
    assert [d.what for d in needs(Run(preset), ["bootstrap-1/selected"]).demands][-1] == "sampling.pool"


def test_no_prompts_answers_are_in_two_files() -> None:
    stages = SteerLM2Stages()
    assert stages.rows_per_file(_preset("bootstrap.samples_per_prompt=7", "rows.rows_per_file=100")) == 98
    assert stages.rows_per_file(_preset("bootstrap.samples_per_prompt=7", "rows.rows_per_file=5")) == 7


REQUESTED = {"helpfulness": 4.0, "humor": 0.0}


def _sample(answer: str, rated: bool = True, finish: str = "stop", humor: float | None = 0.25) -> SampledRow:
    predicted = {"helpfulness": 3.0} | ({} if humor is None else {"humor": humor})
    turns = (Message("user", "Tell me about owls."), Message("assistant", answer))
    row = Conversation("bootstrap-1", "", turns, predicted=(predicted,), requested=(REQUESTED,), group="owls")
    return SampledRow(row, finish, 1, rated)


def _decided(sample: SampledRow, **more: object) -> Weighable:
    arguments = {"log_policy": -7.0, "log_free": -9.0, "as_label": Calibration(), "unfinished": False} | more
    return weighable(SCHEMA, sample, **arguments)  # type: ignore[arg-type]


def test_a_sample_that_cannot_be_weighed_has_a_reason() -> None:
    assert _decided(_sample("a", finish="length")).reason == "unfinished"
    assert _decided(_sample("a", finish="length"), unfinished=True).reason == ""
    assert _decided(_sample("a"), log_free=None).reason == "over_long"
    assert _decided(_sample("a", humor=None)).reason == "unrated"


def test_the_predicted_values_count_on_the_scale_of_the_labels() -> None:
    stretched = Calibration(scale={"helpfulness": 2.0}, shift={"helpfulness": -2.0})
    response = _decided(_sample("a"), as_label=stretched).response
    assert response
    assert response.log_labels == log_labels(SCHEMA, REQUESTED, {"helpfulness": 4.0, "humor": 0.25})
    assert (response.log_policy, response.log_free, response.text) == (-7.0, -9.0, "a")


def _reasons(samples: Sequence[Weighable]) -> list[str]:
    return [sample.reason for sample in together(samples)]


def test_a_prompt_counts_with_all_its_answers_or_not_at_all() -> None:
    good, bad = _decided(_sample("a")), _decided(_sample("b", finish="length"))
    assert _reasons([good, good]) == ["", ""]
    assert _reasons([good, bad]) == ["incomplete", "unfinished"]
    assert together([good, bad])[0].response is None
    group = group_of([good, _decided(_sample("b"))])
    assert (group.group, group.requested, group.messages) == (
        "owls",
        REQUESTED,
        (Message("user", "Tell me about owls."),),
    )
    assert [response.text for response in group.responses] == ["a", "b"]
    assert np.exp(group.log_target) == pytest.approx([0.5, 0.5])
    row = replace(good.candidate.row, messages=(Message("user", "q"), Message("assistant", "a")))
    with pytest.raises(AssertionError, match="a group answers one prompt"):
        group_of([good, Weighable(replace(good.candidate, row=row), "")])


def test_a_round_without_a_whole_group_ends_with_a_sentence() -> None:
    with pytest.raises(StageError, match=r"of no prompt can all 4 answers be weighed \(incomplete 3, unfinished 5\)"):
        _summary("bootstrap 1", [], Counter(incomplete=3, unfinished=5), 4)


def test_the_summary_is_of_the_weights_before_training() -> None:
    found = _summary("bootstrap 1", [np.log([0.5, 0.5]), np.log([0.9, 0.1])], Counter(kept=4), 2)
    assert (found.prompts, found.effective) == (2, pytest.approx((2 + 1 / 0.82) / 2, abs=1e-3))
    assert found.kl == pytest.approx((0.9 * np.log(1.8) + 0.1 * np.log(0.2)) / 2, abs=1e-4)


def test_the_kl_of_a_training_is_its_loss_at_both_ends() -> None:
    losses = tuple(LossPoint(step=step, loss=1 / step) for step in range(1, 11))
    found = kl_of(training(losses=losses, validation_loss=0.2))
    assert (found.first, found.last, found.held_out) == (0.75, round((1 / 9 + 1 / 10) / 2, 4), 0.2)
    assert kl_of(training(losses=losses[:1], validation_loss=None)).last == 1
