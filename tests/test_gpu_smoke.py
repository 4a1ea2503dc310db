"""The parts of `make gpu-smoke` and `make gpu-bench` that need no Ray: each check must be able to fail."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.kernels.fused_attention import FUSED
from actors.kernels.varlen import packed, per_segment
from actors.modeling import self_check
from actors.modeling.policy import Policy
from actors.modeling.random_llama import make_random_policy
from actors.training.flops import Arithmetic
from actors.training.settings import LearnerSettings
from cluster.settings.load import load
from data.lab import Lab, LabSettings
from jobs import gpu_smoke
from jobs.bench.rows import SCHEMA as HELPSTEER
from jobs.gpu_checks import smoke as smoke_module
from jobs.gpu_checks.bench import FREE, SizeBench
from jobs.gpu_checks.checks import Check, CheckFailed, run_all
from jobs.gpu_checks.sizes import size_of
from jobs.gpu_checks.smoke import Smoke, amounts
from jobs.gpu_checks.speed import Speed, forward_flops
from jobs.gpu_checks.stages import PRESET, last_words, words
from jobs.gpu_checks.target import Target
from jobs.gpu_checks.training import Trained, memory_lines, same_losses, zero_check
from jobs.runner.preset import Preset

CPU, GPUS = Target("cpu", 0), Target("gpu", 2)
TRAINED = Trained([2.0, 1.0], 100.0, 0.4, peak_bytes=300, planned_bytes=200.0, forwards=8)


@pytest.fixture(scope="module")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("random") / "policy")
    texts = [m.content for row in Lab(LabSettings(num_rows=200)).rows() for m in row.messages]
    size = size_of("1M")
    found = make_random_policy(size.shape, size.tied, texts, HELPSTEER, "float32", "cpu", folder)
    assert found == size.num_parameters
    return folder


@pytest.mark.parametrize(
    ("found", "precision", "message"),
    [
        ([2.0, 1.01], "fp32", r"differ by 1.0e-02 nats .* 0.001 is rounding"),
        ([2.0, 1.2], "bf16", "differ"),
        ([2.0, float("nan")], "bf16", "differ by nan"),
        ([2.0], "fp32", "1 steps instead of 2"),
    ],
)
def test_other_losses_are_a_failure(found: list[float], precision: str, message: str) -> None:
    assert same_losses([2.0, 1.0005], [2.0, 1.0], precision) == pytest.approx(5e-4)
    with pytest.raises(CheckFailed, match=message):
        same_losses(found, [2.0, 1.0], precision)


def test_a_zero_stage_is_compared_with_stage_0_and_must_learn() -> None:
    class Trainings:
        learner = LearnerSettings(precision="fp32")

        def train(self, name: str, zero_stage: int) -> Trained:
            return Trained(losses[zero_stage], 100.0, 0.4, 300, 200.0, 8)

    losses = {0: [2.0, 1.0], 1: [2.0, 1.0001], 2: [2.0, 1.1], 3: [1.0, 2.0]}
    found: dict[int, Trained] = {}
    check: Callable[[int], str] = lambda stage: zero_check(Trainings(), found, stage)()  # type: ignore[arg-type]  # noqa: E731
    assert "losses within" not in check(0)
    assert "losses within 1.0e-04 of ZeRO 0" in check(1)
    with pytest.raises(CheckFailed, match="differ"):
        check(2)
    with pytest.raises(CheckFailed, match="does not learn"):
        check(3)


def test_operations_of_a_forward_are_a_third_of_a_training_s(random_policy: str) -> None:
    arithmetic, size = Arithmetic.of(Policy.load(random_policy).model), size_of("1M")
    assert arithmetic.body == size.body
    assert 3 * forward_flops(size, 100, 40, 5000.0) == pytest.approx(arithmetic.flops(100, 40, 5000.0))


@pytest.mark.parametrize("chosen", [CPU, GPUS])
def test_the_run_of_all_stages_is_a_preset_on_the_wanted_device(chosen: Target, tmp_path: Path) -> None:
    preset = load(Preset, PRESET, words(chosen, amounts(chosen).size, tmp_path))
    learners = [preset.base.pretrain, preset.predictor.learner, preset.policy.learner, preset.bootstrap.learner]
    assert {learner.use_gpu for learner in learners if learner} == {chosen.on_gpu}
    assert {preset.annotate.pool.gpus_per_actor, preset.sampling.pool.gpus_per_actor} == {float(chosen.on_gpu)}
    assert amounts(chosen).learner.use_gpu == chosen.on_gpu
    assert preset.base.small.hidden_size == amounts(chosen).size.shape.hidden_size


def test_the_last_words_of_a_failed_run_are_its_own_sentence() -> None:
    assert last_words(["python -m jobs.run: no row could be read", "(raylet) bye"]).endswith("no row could be read")
    assert last_words(["Traceback", "KeyError: 1", ""]) == "KeyError: 1"


@pytest.mark.parametrize(("scale", "window"), [(1.0, None), (1.0, 100), (1.01, None)])
def test_a_fused_kernel_is_held_against_the_reference(
    scale: float, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel whose gradients alone are off by a hundredth is seen."""

    def kernel(q: Any, k: Any, v: Any, cu: Any, longest: int, causal: bool, scaling: Any, width: Any) -> torch.Tensor:
        qkv = [t.transpose(0, 1)[None] for t in (q, k, v)]
        out = per_segment(qkv[0], qkv[1], qkv[2], cu.tolist(), causal, scaling, width, 0.0)[0]
        return out.detach() + (out - out.detach()) * scale

    monkeypatch.setitem(FUSED, "cpu", {"kernel": kernel})
    monkeypatch.setattr(self_check, "fused_kernel", lambda *_: kernel)
    found = self_check.check_fused("cpu", "float32", 4, 2, 16, window)
    assert found is not None
    assert found.name == "kernel"
    assert found.forward < 1e-5
    assert found.backward == pytest.approx(scale - 1, abs=1e-4)


@pytest.mark.parametrize("errors", [(0.04, 0.0), (0.0, 0.06), (0.0, math.nan)])
def test_a_fused_kernel_that_is_off_fails(errors: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "call", lambda *_: [self_check.FusedCheck("kernel", *errors)] * 3)
    with pytest.raises(CheckFailed, match="errors above"):
        Smoke(GPUS, Path("nowhere"), amounts(GPUS)).fused_attention()


def test_a_machine_without_a_fused_kernel_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "fused_kernel", lambda *_: None)
    assert self_check.check_fused("cpu", "float32", 4, 2, 16) is None
    smoke = Smoke(GPUS, Path("nowhere"), amounts(GPUS))
    monkeypatch.setattr(Target, "call", lambda self, function, *_: function("cpu", "float32", [(4, 2, 16, None)] * 3))
    with pytest.raises(CheckFailed, match="no fused kernel for 12/3 heads of 64"):
        smoke.fused_attention()


@pytest.mark.parametrize(
    ("used", "message"),
    [(("cuda", "cuda"), "reserved no GPU computes on cuda"), (("cpu", "cpu"), "reserved a GPU computes on cpu")],
)
def test_a_process_that_computes_elsewhere_fails(
    used: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`used`: without a GPU, and with one."""
    monkeypatch.setattr(Target, "call", lambda self, *_: used[self.on_gpu])
    with pytest.raises(CheckFailed, match=message):
        Smoke(GPUS, Path("nowhere"), amounts(GPUS)).devices()


def test_segments_that_see_each_other_are_found(random_policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_check.packed_difference(random_policy, "cpu", "float32") < smoke_module.PACKED_DIFFERENCE["fp32"]
    joined = lambda segments, device: packed([np.concatenate(segments)], device)  # noqa: E731
    monkeypatch.setattr(self_check, "packed", joined)
    assert self_check.packed_difference(random_policy, "cpu", "float32") > 1


def test_tokens_that_are_not_the_likeliest_are_found(random_policy: str) -> None:
    model, prompt = Policy.load(random_policy).model, [5, 6, 7]
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    assert self_check.greedy_gap(random_policy, "cpu", [(prompt, [best])]) == 0
    assert self_check.greedy_gap(random_policy, "cpu", [(prompt, [best]), (prompt, [best + 1])]) > 0.2


def test_memory_above_the_plan_fails_on_a_gpu_and_is_told_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    found = {2: TRAINED}
    assert memory_lines(found) == [("ZeRO 2", "0", "0", "1.50")]
    assert "no verdict" in Smoke(CPU, Path("nowhere"), amounts(CPU), found).memory()
    with pytest.raises(CheckFailed, match=r"1\.50 times what the plan says, 1\.15 is allowed"):
        Smoke(GPUS, Path("nowhere"), amounts(GPUS), found).memory()
    assert "measured MiB" in capsys.readouterr().out


def test_the_last_line_has_ratios_and_figures_of_what_was_found(tmp_path: Path) -> None:
    smoke = Smoke(GPUS, tmp_path, amounts(GPUS), {0: TRAINED}, {"annotation": Speed(10, 5.0, 0.25, 7)}, {"bf16": 4e14})
    assert gpu_smoke.ratios(smoke) == {"annotation_vs_peak": 0.25, "training_vs_peak": 0.4, "memory_vs_plan": 1.5}
    results = run_all([Check("a", lambda: "fine", 60)], tmp_path / "failures.log", 1)
    found = json.loads(json.dumps(gpu_smoke.figures(smoke, results)))
    assert found["tokens_per_s"] == {"annotation": 5.0, "training_zero_0": 100.0}
    assert found["memory_bytes"] == {"zero_0": {"planned": 200, "measured": 300}}
    assert (found["failures"], found["checks"]["a"]["state"]) == ([], "ok")
    assert gpu_smoke.ratios(Smoke(GPUS, tmp_path, amounts(GPUS))) == {}, "nothing was found"


def test_a_size_is_trained_the_fastest_way_that_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def planned(model: str, learner: LearnerSettings) -> float:
        return 40.0 if learner.lora else 200.0 if learner.zero_stage == 2 else 100.0

    monkeypatch.setattr("jobs.gpu_checks.bench.planned_bytes", planned)
    bench = SizeBench(GPUS, size_of("8B"), tmp_path)
    assert bench._fitting(None)[1] == bench._fitting(300)[1] == "all weights, ZeRO 2"
    learner, how = bench._fitting(int(100 / FREE) + 1)
    assert (how, learner.zero_stage) == ("all weights, ZeRO 3, activation checkpointing", 3)
    assert bench._fitting(50)[0].lora is not None
    with pytest.raises(CheckFailed, match="a GPU has 0 GiB, and it takes: all weights"):
        bench._fitting(39)
