"""The command line of every job: --help and --plan start nothing; a user error is one sentence and an exit code."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.tiny_run import REPOSITORY

from jobs.run import ending, stages
from jobs.runner.cli import main

JOBS = ["prepare", "pretrain", "train_predictor", "annotate", "train_policy"]


@pytest.fixture
def run_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """`jobs.run` with these words, in this process: exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jobs/run.py", *words])
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="jobs.run"))
        monkeypatch.chdir(REPOSITORY)
        code = 0
        try:
            main("About.", stages, ending)
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return run


def test_help_lists_every_setting_with_its_default(run_job) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run_job("--help")
    assert code == 0
    for part in (
        "usage: python -m jobs.run PRESET.yaml",
        "policy.learner.zero_stage",
        "= 2",
        "Passes over the examples;",
        "--plan",
    ):
        assert part in out


def test_a_plan_starts_nothing(run_job) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run_job("jobs/presets/demo.yaml", "--plan")
    assert code == 0
    assert "run demo: runs/demo" in out
    assert "Ray Train workers" in out


def test_every_job_is_a_stage_with_a_line_of_help() -> None:
    for name in JOBS:
        module = importlib.import_module(f"jobs.{name}")
        assert f"python -m jobs.{name} PRESET.yaml" in (module.__doc__ or "")
        assert callable(module.STAGE.work)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["jobs/presets/nowhere.yaml"], "nowhere.yaml"),
        (["jobs/presets/demo.yaml", "policy.lerner.epochs=2"], "unknown key policy.lerner"),
        (["jobs/presets/demo.yaml", "policy.learner.epochs=many"], "policy.learner.epochs"),
        (["jobs/presets/demo.yaml", "attributes=labb"], "did you mean 'lab'?"),
        (["jobs/presets/demo.yaml", "--plam"], "unknown flag --plam (did you mean --plan?)"),
    ],
)
def test_a_user_error_is_one_sentence(run_job, words: list[str], sentence: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run_job(*words)
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_a_stage_out_of_order_says_what_to_run_first(tmp_path: object) -> None:
    words = [sys.executable, "-m", "jobs.annotate", "jobs/presets/demo.yaml", f"storage={tmp_path}"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "stage annotated needs rows, which is not finished" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed_is_said_before_anything_starts(  # type: ignore[no-untyped-def]
    run_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, out, err = run_job("jobs/presets/demo.yaml", f"storage={tmp_path}", "sampling.engine.kind=vllm")
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert "sampling.engine.kind is vllm, which is not installed here" in line
    assert list(tmp_path.iterdir()) == []


def test_a_plan_names_the_engine_where_it_is_a_question(run_job) -> None:  # type: ignore[no-untyped-def]
    _, out, _ = run_job("jobs/presets/demo.yaml", "--plan")
    assert "vLLM" not in out
    _, out, _ = run_job("jobs/presets/demo.yaml", "sampling.engine.kind=vllm", "--plan")
    assert out.count("; vLLM; GiB each: weights ") == 3, "samples, promotion and report"
    _, out, _ = run_job("jobs/presets/demo.yaml", "sampling.pool.gpus_per_actor=0.5", "--plan")
    assert out.count("; vLLM where it is installed and runs the model, which takes 45% of a GPU at most, else ") == 3
    _, out, _ = run_job("jobs/presets/demo.yaml", "sampling.pool.gpus_per_actor=0.5", "sampling.guidance=2", "--plan")
    assert "vLLM" not in out, "guided answers are written by transformers"
