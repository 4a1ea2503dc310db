from pathlib import Path

import pytest

from cluster.settings import load
from jobs.plan import model_state_bytes, plan_lines
from jobs.preset import Preset
from jobs.run import stages

PRESETS = sorted((Path(__file__).parent.parent / "jobs" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_parses_and_plans(path: Path) -> None:
    preset = load(Preset, str(path))
    names = [s.name for s in stages(preset)]
    lines = list(plan_lines(preset, names))
    assert len(lines) == len(names) + 1
    assert sum("Ray Train workers" in line for line in lines) >= 3
    assert sum("Ray Data actors" in line for line in lines) >= 4


def test_model_states_fall_with_the_stage_as_theory_says() -> None:
    billion = 10**9
    assert [model_state_bytes(billion, stage, 4) / billion for stage in range(4)] == [16, 10, 7, 4]
    assert model_state_bytes(billion, 3, 1) == 16 * billion


def test_options_that_would_be_ignored_are_refused() -> None:
    demo = str(PRESETS[[p.stem for p in PRESETS].index("demo")])
    for override, sentence in {
        "base.model=x/y": "base.pretrain and base.texts would be ignored",
        "predictor.folds=1": "one fold would leave nothing",
        "annotate.max_tokens=9999": "must not exceed annotate.row_tokens",
        "predictor={probe: 1, learner: {zero_stage: 3}}": "predictor.probe is set, but predictor.learner.zero_stage is 3",
        "predictor={stay_language_model: 1, learner: {zero_stage: 3}}": "predictor.stay_language_model is set, but predictor.learner.zero_stage is 3",
        "predictor={learner: {}, warmup: {zero_stage: 3}}": "predictor.warmup is set, but predictor.warmup.zero_stage is 3",
        "bootstrap.leading=honesty": "unknown attribute 'honesty'",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            load(Preset, demo, [override])
