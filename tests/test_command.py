"""The command line of every job: --help and --plan start nothing, a mistake is one sentence and an exit code."""

import subprocess
import sys

import pytest
from tiny_run import REPOSITORY

JOBS = ["prepare", "pretrain", "train_predictor", "annotate", "train_policy", "bootstrap", "evaluate", "run"]


def _job(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", f"jobs.{name}", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_help_lists_every_setting_with_its_default() -> None:
    done = _job("run", "--help")
    assert done.returncode == 0
    for part in ("usage: python -m jobs.run PRESET.yaml", "policy.learner.zero_stage", "= 2", "Passes over the examples.", "--plan"):
        assert part in done.stdout


@pytest.mark.parametrize("name", JOBS)
def test_every_job_plans(name: str) -> None:
    done = _job(name, "jobs/presets/demo.yaml", "--plan")
    assert done.returncode == 0, done.stderr
    assert "run demo: runs/demo" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["jobs/presets/nowhere.yaml"], "nowhere.yaml"),
        (["jobs/presets/demo.yaml", "policy.lerner.epochs=2"], "unknown key policy.lerner"),
        (["jobs/presets/demo.yaml", "policy.learner.epochs=many"], "policy.learner.epochs"),
        (["jobs/presets/demo.yaml", "attributes=labb"], "did you mean 'lab'?"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str) -> None:
    done = _job("run", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("python -m jobs.run:")]) == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.ray
def test_a_stage_out_of_order_says_what_to_run_first(tmp_path: object) -> None:
    done = _job("annotate", "jobs/presets/demo.yaml", f"storage={tmp_path}")
    assert done.returncode == 1
    assert "stage annotated needs rows, which is not finished" in done.stderr
    assert "Traceback" not in done.stderr
