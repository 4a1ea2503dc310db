"""`fit: auto` takes the fastest way that fits, says why, and is resolved before a fingerprint is taken."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.llama_shapes import LLAMA_8B
from transformers import AutoConfig

from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape, shape_of
from actors.training.auto_fit import USABLE, Fitted, fitted
from actors.training.memory import training_memory
from actors.training.settings import LearnerSettings
from cluster.settings.load import load
from data.errors import UserError
from jobs.run import stages
from jobs.runner.auto_fit import with_fits
from jobs.runner.plan import print_plan
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, _description

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape_of(AutoConfig.for_model("llama", **LLAMA_8B))


def _fitted(shape: ModelShape, memory_gib: float, whole_weights: bool = False, **settings: Any) -> Fitted:
    own = {"num_workers": 16, "use_gpu": True, "zero_stage": 2, "pack_tokens": 8192, "max_tokens": 2048}
    learner = LearnerSettings(
        **own | {"packs_per_step": 64, "memory_gib": memory_gib, "fit": "auto", **settings}  # type: ignore[arg-type]
    )
    return fitted("policy.learner", learner, shape, True, whole_weights)


def _time_of(found: Fitted) -> tuple[str, bool, int, int]:
    way = found.learner
    return way.offload, way.activation_checkpointing, way.zero_stage, way.pack_tokens


def test_what_is_chosen_fits_and_keeps_the_tokens_of_a_step(llama: ModelShape) -> None:
    for memory_gib in (24, 40, 80, 141, 400):
        found = _fitted(llama, memory_gib)
        assert training_memory(llama, found.learner).total == found.memory.total <= USABLE * memory_gib * GIB
        assert found.learner.pack_tokens * found.learner.packs_per_step == 8192 * 64
        assert found.learner.pack_tokens >= found.learner.max_tokens
        assert f"fit auto for {memory_gib:g} GiB" in found.reason


def test_an_elastic_training_fits_with_the_fewest_workers(llama: ModelShape) -> None:
    fixed, elastic = _fitted(llama, 80), _fitted(llama, 80, min_workers=4)
    few = training_memory(llama, elastic.learner.fewest).total
    assert few == elastic.memory.total <= USABLE * 80 * GIB
    assert training_memory(llama, fixed.learner.model_copy(update={"num_workers": 4})).total > USABLE * 80 * GIB


def test_more_memory_never_gives_up_more(llama: ModelShape) -> None:
    roomy = _fitted(llama, 400)
    assert _time_of(roomy) == ("none", False, 0, 8192)
    assert "nothing faster is left out" in roomy.reason
    totals = [_fitted(llama, memory_gib).memory.total for memory_gib in (24, 40, 80, 141, 400)]
    assert all(a <= b for a, b in pairwise(totals))


def test_the_reason_has_the_bytes_of_the_faster_ways(llama: ModelShape) -> None:
    found = _fitted(llama, 40)
    assert found.learner.zero_stage == 3
    assert found.learner.pack_tokens < 8192
    for other in ("with zero_stage 2 it would need", "with pack_tokens 8192 it would need"):
        assert other in found.reason
    least = _fitted(llama, 24)
    assert least.learner.activation_checkpointing
    assert "with activation_checkpointing false it would need" in least.reason


def test_whole_weights_forbid_stage_3(llama: ModelShape) -> None:
    assert _fitted(llama, 141, whole_weights=True).learner.zero_stage < 3
    with pytest.raises(UserError, match=r"no way to train fits 24 GiB.*needs .* on each worker .*lora: \{\}"):
        _fitted(llama, 24, whole_weights=True, offload="none", num_workers=1, packs_per_step=64)


def test_a_cpu_gains_nothing_by_offload(llama: ModelShape) -> None:
    assert _fitted(llama, 400, use_gpu=False).learner.offload == "none"


def test_the_memory_must_be_named() -> None:
    with pytest.raises(ValueError, match="fit is auto, but memory_gib is not set"):
        LearnerSettings(fit="auto")


def _preset(memory_gib: float, *more: str) -> Preset:
    chosen = f"policy.learner={{fit: auto, memory_gib: {memory_gib}, pack_tokens: 8192, max_tokens: 512}}"
    return load(Preset, DEMO, [chosen, *more])


def test_the_fingerprint_is_of_the_chosen_packs(tmp_path: Path) -> None:
    tight, lines = with_fits(_preset(1.0))
    assert len(lines) == 1
    assert tight.policy.learner.pack_tokens < 8192
    by_hand = tight.model_copy(
        update={
            "policy": tight.policy.model_copy(
                update={"learner": tight.policy.learner.model_copy(update={"fit": "off", "memory_gib": None})}
            )
        }
    )
    [stage] = [stage for stage in stages(tight) if stage.name == "rows"]
    assert _description(Run(tight), stage)["settings"] == _description(Run(by_hand), stage)["settings"]
    [policy] = [stage for stage in stages(tight) if stage.name == "policy"]
    assert repr(policy.settings(tight)) != repr(policy.settings(_preset(1.0)))
    assert with_fits(load(Preset, DEMO)) == (load(Preset, DEMO), ())


def test_the_plan_prints_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = _preset(1.0, f"storage={tmp_path}")
    print_plan(Run(preset), [stage.name for stage in stages(preset)])
    out = capsys.readouterr().out
    assert "policy.learner: fit auto for 1 GiB: zero_stage" in out
    assert f"x {with_fits(preset)[0].policy.learner.packs_per_step} packs_per_step" in out
