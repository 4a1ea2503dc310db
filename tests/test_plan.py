"""Plans: every preset has one, and what cannot work is refused with the setting that fixes it."""

from pathlib import Path

import pytest

from actors.training.memory import Shape
from actors.training.settings import LearnerSettings
from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import to_table
from data.lab import Lab, LabSettings
from data.record import Record
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.run import stages
from jobs.runner.estimate import estimate
from jobs.runner.plan import learners, plan_lines, refuse_what_cannot_fit
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError
from serve.settings import ServeSettings

CONFIG = str(Path(__file__).parent.parent / "serve" / "config.yaml")
DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
PRESETS = sorted((Path(__file__).parent.parent / "jobs" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_parses_and_plans(path: Path) -> None:
    preset = load(Preset, str(path))
    names = [s.name for s in stages(preset)]
    lines = list(plan_lines(Run(preset.model_copy(update={"storage": "memory://plans"})), names))
    assert len(lines) == 1 + len(names) + len(learners(preset))
    assert lines[-1].endswith("known once jobs.prepare has read the rows")
    assert sum("Ray Train workers" in line and "together" in line for line in lines) >= 3
    assert sum("Ray Data actors" in line for line in lines) >= 4


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_fixes_it() -> None:
    one_gpu = str(Path(DEMO).with_name("one_gpu.yaml"))
    fits = load(
        Preset,
        one_gpu,
        ["predictor.learner.memory_gib=80", "policy.learner.memory_gib=80", "bootstrap.learner.memory_gib=80"],
    )
    refuse_what_cannot_fit(fits)
    with pytest.raises(
        StageError,
        match=r"policy.learner needs 2[0-9].[0-9] GiB on each worker .* its device has 16.0; "
        r"what helps, in policy.learner: offload: optimizer",
    ):
        refuse_what_cannot_fit(load(Preset, one_gpu, ["policy.learner.memory_gib=16"]))
    with pytest.raises(StageError, match=r"base\.pretrain needs"):
        refuse_what_cannot_fit(load(Preset, DEMO, ["base.pretrain.memory_gib=0.01"]))


def test_options_that_would_be_ignored_are_refused() -> None:
    demo = str(PRESETS[[p.stem for p in PRESETS].index("demo")])
    for override, sentence in {
        "base.model=x/y": "base.pretrain and base.texts have no effect",
        "predictor.folds=1": "one fold would leave nothing",
        "annotate.max_tokens=9999": "must not exceed annotate.pack_tokens",
        "predictor={ridge_init: 1, learner: {zero_stage: 3}}": "predictor.ridge_init is set, but "
        "predictor.learner.zero_stage is 3",
        "predictor={lm_loss_weight: 1, learner: {zero_stage: 3}}": "predictor.lm_loss_weight is set, but "
        "predictor.learner.zero_stage is 3",
        "predictor={learner: {}, warmup: {zero_stage: 3}}": "predictor.warmup is set, but "
        "predictor.warmup.zero_stage is 3",
        "bootstrap.leading=honesty": "unknown attribute 'honesty'",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            load(Preset, demo, [override])


def test_with_the_rows_there_tokens_steps_and_time_are_estimated(tmp_path: Path) -> None:
    schema = shipped("lab")
    rows = list(Lab(LabSettings(num_rows=200)).rows())
    write_table(to_table(rows, schema), Storage(str(tmp_path)) / "rows")
    learner = LearnerSettings(
        pack_tokens=512, max_tokens=512, packs_per_step=2, num_workers=2, epochs=3, precision="fp32"
    )
    found = estimate(Storage(str(tmp_path)) / "rows", learner, Shape(10**6), has_device=True)
    assert found is not None
    characters = sum(len(m.content) for row in rows for m in row.messages)
    assert characters / 4 * 3 * 0.8 < found.tokens < characters / 4 * 3 * 2
    assert found.steps == -(-found.tokens // 1024)
    assert found.seconds is not None
    assert found.seconds > 0
    assert "time unknown" in str(estimate(Storage(str(tmp_path)) / "rows", learner, Shape(10**6), has_device=False))
    assert estimate(Storage(str(tmp_path)) / "nothing", learner, None, has_device=True) is None


@pytest.mark.parametrize(
    ("record", "path", "old", "new"),
    [
        (Preset, DEMO, "policy.learner.row_tokens", "policy.learner.pack_tokens"),
        (Preset, DEMO, "sampling.max_slots", "sampling.max_num_seqs"),
        (ServeSettings, CONFIG, "engine.max_slots", "engine.max_num_seqs"),
    ],
)
def test_a_setting_of_yesterday_is_an_error_that_names_todays(
    record: type[Record], path: str, old: str, new: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(record, path, [f"{old}=9"])
    assert str(caught.value) == f"{old} on the command line is called {new} now; rename it there"
    assert new.rpartition(".")[2] in record.RENAMED.values()
