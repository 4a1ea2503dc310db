"""`auto` is what the device multiplies faster, by measurement; a set dtype that is far slower is a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors.kernels.devices import CPU
from actors.kernels.precision import FULL, HALF, judged, seconds_per_gflop, usable_dtype, why_not_bf16
from actors.training import precision
from actors.training.settings import LearnerSettings, deepspeed_config
from actors.training.train_state import TrainState
from cluster.settings.load import load
from jobs.bench.bf16 import bf16_side
from jobs.runner.preset import Preset
from jobs.runner.trainings import learners

ROOT = Path(__file__).resolve().parent.parent
ZEN3 = {FULL: 1 / 108, HALF: 1 / 0.76}
"""Measured on an AVX2 server core, in seconds per GFLOP; the next on one with AVX-512-BF16."""
ZEN4 = {FULL: 1 / 86, HALF: 1 / 156}
NATIVE = {"avx512_bf16", "amx_bf16"}


@pytest.mark.parametrize(
    ("wanted", "seconds", "before", "dtype", "line"),
    [
        ("auto", ZEN3, "", FULL, "dtype auto: float32; cpu multiplies bf16 142.1 times slower than fp32 "),
        ("auto", ZEN4, "", HALF, "dtype auto: bfloat16; cpu multiplies bf16 1.8 times as fast as fp32"),
        ("auto", {FULL: 1.0, HALF: 0.9}, "", FULL, "dtype auto: float32; cpu multiplies bf16 1.1 times as fast"),
        ("auto", ZEN4, FULL, FULL, "dtype auto: float32, as before; cpu"),
        ("auto", {FULL: 1.0, HALF: 3.0}, HALF, HALF, "dtype auto: bfloat16, as before; cpu"),
        ("auto", ZEN3, HALF, FULL, "warning: dtype auto: float32 from here on, bfloat16 until now; cpu"),
        (HALF, ZEN3, "", HALF, "warning: dtype is bfloat16, which cpu multiplies 142 times slower than float32 (0.8"),
        (FULL, {FULL: 20.0, HALF: 1.0}, "", FULL, "warning: dtype is float32, which cpu multiplies 20 times slower"),
        ("float16", ZEN4 | {"float16": 1 / 10}, "", "float16", "warning: dtype is float16, which cpu multiplies 16 "),
        (FULL, ZEN3, "", FULL, ""),
        (HALF, ZEN4, "", HALF, ""),
    ],
)  # fmt: skip
def test_the_choice_and_its_line(wanted: str, seconds: dict[str, float], before: str, dtype: str, line: str) -> None:
    found = judged(wanted, seconds, "cpu", "dtype", before)
    assert found.dtype == dtype
    assert found.line.startswith(line)
    assert bool(found.line) == bool(line)
    if wanted != "auto" and line:
        assert found.line.endswith(f"; set dtype to auto or {HALF if dtype != HALF and seconds[HALF] < 1.1 else FULL}")


OWN_CHOICE = """
import torch
from actors.kernels.precision import HALF, seconds_per_gflop, usable_dtype
print("chosen", usable_dtype("auto", torch.device("cpu"), "annotate.pool.dtype"))
"""


def _chosen(**environment: str) -> tuple[str, str]:
    """The dtype that a process of its own measures, and the line that it prints."""
    command = [sys.executable, "-c", OWN_CHOICE]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=True
    )
    line, chosen = done.stdout.splitlines()[-2:]
    return chosen.split()[1], line


def test_a_cpu_without_bf16_arithmetic_gets_fp32() -> None:
    """PyTorch and oneDNN are told to use AVX2 alone, as on most laptops; measured, not mocked."""
    dtype, line = _chosen(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", OMP_NUM_THREADS="1")
    assert dtype == FULL
    assert line.startswith("annotate.pool.dtype auto: float32; cpu multiplies bf16 ")
    assert "times slower than fp32" in line


@pytest.mark.skipif(
    not NATIVE & set(Path("/proc/cpuinfo").read_text().split()), reason="this CPU has no bf16 arithmetic"
)
def test_a_cpu_with_bf16_arithmetic_gets_bf16() -> None:
    dtype, line = _chosen(OMP_NUM_THREADS="1")
    assert dtype == HALF
    assert "times as fast as fp32" in line


def test_measuring_leaves_torchs_random_numbers_alone() -> None:
    """Weights and dropout come from them: a run must give the same numbers as before."""
    seconds_per_gflop.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    usable_dtype("auto", CPU, "dtype")
    assert torch.equal(torch.rand(4), expected)


def _workers(monkeypatch: pytest.MonkeyPatch, *each: dict[str, float]) -> None:
    """Trainings of workers with these speeds; this process is the first."""
    monkeypatch.setattr(precision, "seconds_per_gflop", lambda _, dtype: each[0][dtype])
    others = [(own[FULL], own[HALF], 1.0) for own in each[1:]]
    monkeypatch.setattr(precision, "summed", lambda *own: [sum(values) for values in zip(own, *others, strict=True)])


def test_all_workers_of_a_training_get_what_the_slowest_can(monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainState()
    _workers(monkeypatch, ZEN4, ZEN4)
    settings, line = precision.with_precision(LearnerSettings(), state, "policy")
    assert (settings.precision, state.precision) == ("bf16", "bf16")
    assert line.startswith("policy: precision auto: bf16; a worker (cpu) multiplies bf16 1.8 times as fast as fp32")
    _workers(monkeypatch, ZEN4, ZEN3)
    settings, _ = precision.with_precision(LearnerSettings(), TrainState(), "policy")
    assert settings.precision == "fp32"


def test_a_training_that_goes_on_keeps_its_precision_or_says_that_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _workers(monkeypatch, ZEN4)
    kept, line = precision.with_precision(LearnerSettings(), state := TrainState(precision="fp32"), "policy")
    assert (kept.precision, state.precision) == ("fp32", "fp32")
    assert "precision auto: fp32, as before" in line
    _workers(monkeypatch, ZEN3)
    other, line = precision.with_precision(LearnerSettings(), state := TrainState(precision="bf16"), "policy")
    assert (other.precision, state.precision) == ("fp32", "fp32")
    assert line.startswith("policy: warning: precision auto: fp32 from here on, bf16 until now")


def test_a_set_precision_is_kept_with_a_warning_where_it_is_far_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    _workers(monkeypatch, ZEN3)
    settings, line = precision.with_precision(LearnerSettings(precision="bf16"), TrainState(), "policy")
    assert settings.precision == "bf16"
    assert line.startswith("policy: warning: precision is bf16, which a worker (cpu) multiplies 142 times slower")
    assert line.endswith("set precision to auto or fp32")
    assert precision.with_precision(LearnerSettings(precision="fp32"), TrainState(), "policy")[1] == ""


def test_deepspeed_gets_the_choice() -> None:
    enabled = [deepspeed_config(LearnerSettings(precision=p))["torch_autocast"]["enabled"] for p in ("bf16", "fp32")]
    assert enabled == [True, False]
    with pytest.raises(AssertionError):
        deepspeed_config(LearnerSettings())


def test_no_preset_for_a_cpu_sets_what_a_laptop_cannot() -> None:
    for path in sorted((ROOT / "jobs" / "presets").glob("*.yaml")):
        for name, learner in learners(load(Preset, str(path))).items():
            assert learner.use_gpu or learner.precision != "bf16", f"{path.stem}: {name}"


def test_the_bf16_side_of_a_bench_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = dict(ZEN3)
    monkeypatch.setattr("actors.kernels.precision.seconds_per_gflop", lambda _, dtype: speeds[dtype])
    assert bf16_side({"ours bf16": 1}) == {}
    assert "bf16_vs_fp32 is left out: cpu multiplies bf16 142.1 times slower than fp32" in capsys.readouterr().out
    speeds.update(ZEN4)
    assert why_not_bf16(CPU) == ""
    assert bf16_side({"ours bf16": 1}) == {"ours bf16": 1}
