"""`make gpu-bench` and `make gpu-smoke` to their ends, on a CPU."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from jobs import gpu_bench, gpu_smoke
from jobs.gpu_checks.checks import Check, CheckFailed
from jobs.gpu_checks.target import Target
from jobs.gpu_checks.training import Trained, Trainings

TRAINED = Trained([2.0, 1.0], 100.0, 0.4, peak_bytes=300, planned_bytes=200.0, forwards=8)
PATHS = {"training", "annotation", "sampling_transformers"}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on the device runs in this process, and no training and no run is started."""

    def call(self: Target, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(Target, "call", call)
    for module in ("jobs.gpu_smoke", "jobs.gpu_bench"):
        monkeypatch.setattr(f"{module}.ray_check", lambda *_: Check("Ray", lambda: "as always", 60))
    monkeypatch.setattr(Trainings, "train", lambda *_, **__: TRAINED)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"bench", "machine", "ratios", "figures"}
    return found


@pytest.mark.usefixtures("without_ray")
def test_the_bench_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_bench.main(["--device", "cpu", "--sizes", "1M"]) == 0
    last = last_line(capsys)
    assert last["ratios"].keys() == {f"{path}_1M_vs_peak" for path in PATHS}
    assert last["ratios"]["training_1M_vs_peak"] == 0.4
    assert last["figures"]["sizes"]["1M"]["tokens_per_s"].keys() == PATHS
    assert last["figures"]["failures"] == []


@pytest.mark.usefixtures("without_ray")
def test_the_smoke_test_ends_with_one_json_line_and_fails_if_one_check_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_stages(*_: Any) -> str:
        raise CheckFailed("stage policy: it broke")

    monkeypatch.setattr("jobs.gpu_checks.smoke.run_stages", run_stages)
    monkeypatch.setattr(Trainings, "resumed", lambda *_: "goes on")
    monkeypatch.setattr("jobs.gpu_checks.smoke.peaks", lambda _: {"fp32": 1e11})
    assert gpu_smoke.main(["--device=cpu"]) == 1
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    states = {name: check["state"] for name, check in last["figures"]["checks"].items()}
    assert {name for name, state in states.items() if state == "FAILED"} == {"stages of a run"}
    assert {name for name, state in states.items() if state == "skipped"} >= {"fused attention"}
    assert states["sampling, transformers"] == states["annotation"] == states["packed = one by one"] == "ok"
    assert last["figures"]["failures"] == ["stages of a run: stage policy: it broke"]
    assert captured.err == "python -m jobs.gpu_smoke: FAILED: stages of a run: stage policy: it broke\n"
    assert "[16 of 16] sampling, vLLM" in captured.out


@pytest.mark.ray
@pytest.mark.slow
def test_the_bench_measures_every_path_of_a_size(ray_cluster: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_bench.main(["--device", "cpu", "--sizes", "1M"]) == 0
    last = last_line(capsys)
    assert {f"{path}_1M_vs_peak" for path in PATHS} <= last["ratios"].keys()
    assert all(0 < ratio < 1.5 for ratio in last["ratios"].values())
