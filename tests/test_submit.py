"""Submitting: refusals before anything is sent, and a job on a real cluster with a token, followed to its exit code."""

import fnmatch
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus
from support.job_cluster import JobCluster

import cluster.submit as submit
from cluster.upload import package_sizes
from data.storage import Storage
from jobs.runner.lease import held

ROOT = Path(__file__).resolve().parent.parent


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert submit.main(words) == submit.USER_ERROR
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_a_mistake_in_the_preset_is_found_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown key polcy" in refused(capsys, "run", "jobs/presets/demo.yaml", "polcy.learner.epochs=1")


def test_a_secret_in_the_environment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "run", "jobs/presets/demo.yaml", "--env", "AWS_SECRET_ACCESS_KEY=abc")
    assert "AWS_SECRET_ACCESS_KEY looks like a secret" in said
    assert "abc" not in said


@pytest.mark.parametrize("pair", ["DATA=https://bob:hunter22@host/x", "hunter22", "=hunter22", "MY-hunter22=1"])
def test_a_credential_given_as_a_value_is_refused_and_not_shown(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hunter22" not in refused(capsys, "run", "jobs/presets/demo.yaml", "--env", "A=1", "--env", pair)


def test_where_nobody_answers_says_what_to_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ray dashboard ray_cluster.yaml" in refused(
        capsys, "run", "jobs/presets/demo.yaml", "--address", "http://127.0.0.1:9"
    )


def test_a_dry_run_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["run", "jobs/presets/demo.yaml", "policy.learner.epochs=1", "--dry-run"]) == 0
    assert (
        capsys.readouterr().out == "would submit: python -m jobs.run jobs/presets/demo.yaml policy.learner.epochs=1\n"
    )


@pytest.mark.case("A3: a submission to a run in use")
def test_a_run_in_use_is_not_submitted_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", "jobs/presets/demo.yaml", f"storage={tmp_path}", "--dry-run")
    with held(Storage(str(tmp_path / "demo" / "lease.json")), "python -m jobs.run"):
        said = refused(capsys, *words)
    assert f"{tmp_path}/demo is in use by python -m jobs.run of " in said
    assert f"process {os.getpid()}" in said
    assert submit.main(words) == 0


def test_what_is_sent_is_the_project_and_not_what_runs_wrote(tmp_path: Path) -> None:
    sizes = package_sizes(ROOT)
    assert {"jobs/run.py", "ray_cluster.yaml", ".rayignore"} <= sizes.keys()
    assert not [name for name in sizes if name.startswith(("runs/", ".venv/", ".git/", "tests/"))]
    assert sum(sizes.values()) < 5 * 2**20


SECRETS = (
    ".env",
    ".env.local",
    "keys.txt",
    "auth_token",
    "tls.key",
    "aws.pem",
    "id_rsa",
    "deep/er/keys.txt",
    "a/b.key",
)


@pytest.mark.case("B13: keys in the project's folder")
def test_no_key_is_uploaded_or_committed_or_built_into_an_image(tmp_path: Path) -> None:
    for name in (".rayignore", ".gitignore", ".dockerignore"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name in (*SECRETS, "serve/keys.py", "data/tokens.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    kept = {"serve/keys.py", "data/tokens.py", ".rayignore", ".gitignore", ".dockerignore"}
    assert package_sizes(tmp_path).keys() == kept
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=tmp_path, text=True)
    assert set(listed.splitlines()) == kept
    patterns = [line.removeprefix("**/") for line in (tmp_path / ".dockerignore").read_text().splitlines()]
    anywhere = {pattern for pattern in patterns if f"**/{pattern}" in (tmp_path / ".dockerignore").read_text()}
    assert all(any(fnmatch.fnmatch(Path(name).name, pattern) for pattern in anywhere) for name in SECRETS)


def test_what_is_too_big_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.bin").write_bytes(os.urandom(3 * 2**20))
    (tmp_path / "small.py").write_text("pass")
    monkeypatch.setattr(submit, "UPLOAD_LIMIT_BYTES", 2**20)
    with pytest.raises(
        submit.Refused,
        match=r"3\.0 MiB to upload, the Jobs API takes 1 MiB; the largest: weights\.bin \(3\.0 MiB\).*\.rayignore",
    ):
        submit.require_small_enough(tmp_path)


class Starting:
    """A cluster that refuses the first jobs as Ray does."""

    def __init__(self, refusals: list[Exception]):
        self.refusals = refusals

    def submit_job(self, **job: str) -> str:
        if self.refusals:
            raise self.refusals.pop(0)
        return job["submission_id"]


@pytest.mark.case("a job for a cluster that still starts")
def test_a_cluster_that_still_starts_is_asked_again() -> None:
    none_yet = "Request failed with status code 500: No available agent to submit job, please try again later.."
    assert submit.sent(Starting([RuntimeError(none_yet)]), submission_id="run-1") == "run-1"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Request failed with status code 500: no room\nmore", "Request failed with status code 500: no room"),
        ("Request failed with status code 500: Traceback:\n  File\nValueError: no such folder", "ValueError: no such"),
    ],
)
def test_what_the_cluster_does_not_take_is_one_sentence(said: str, reason: str) -> None:
    with pytest.raises(submit.Refused, match=f"^the cluster does not take the job: {reason}[^\\n]*$"):
        submit.sent(Starting([RuntimeError(said)]), submission_id="run-1")  # type: ignore[arg-type]


def test_a_job_whose_answer_got_lost_may_run() -> None:
    lost = requests.exceptions.ConnectionError("Connection aborted.\nRemote end closed")
    with pytest.raises(
        submit.Refused, match=r"^the connection broke while run-1 was sent [^\n]*, so it may run: [^\n]*$"
    ):
        submit.sent(Starting([lost]), submission_id="run-1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        (JobStatus.FAILED, None, True),
        (JobStatus.FAILED, -9, True),
        (JobStatus.FAILED, 137, True),
        (JobStatus.FAILED, 1, False),
        (JobStatus.SUCCEEDED, 0, False),
    ],
)
def test_only_what_was_ended_from_outside_is_tried_again(status: JobStatus, code: int | None, again: bool) -> None:
    assert submit.died(SimpleNamespace(status=status, driver_exit_code=code)) == again  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobCluster]:
    with JobCluster(tmp_path_factory.mktemp("head")) as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_is_followed_to_its_exit_code(head: JobCluster, tmp_path: Path) -> None:
    def submitted(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [
            sys.executable,
            "-m",
            "cluster.submit",
            "prepare",
            "jobs/presets/demo.yaml",
            "rows.lab.num_rows=60",
            *words,
            "--address",
            head.dashboard,
        ]
        return subprocess.run(command, cwd=ROOT, env=head.environ, capture_output=True, text=True, timeout=300)

    done = submitted(f"storage={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["stages"]["rows"]["counts"]["lab"]["read"] == 60
    assert (tmp_path / "demo" / "rows" / "manifest.json").exists()
    failed = submitted(
        f"storage={tmp_path}", "rows.sources=[{name: x, format: messages, uri: /nowhere/rows.jsonl}]", "run=other"
    )
    assert failed.returncode == 1
    assert "rows.sources.0.uri: nothing at /nowhere/rows.jsonl" in failed.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_ray_job_submit_does_as_well(head: JobCluster, tmp_path: Path) -> None:
    """As in README: nothing of ours between Ray's own command and the job."""
    ours = ["python", "-m", "jobs.prepare", "jobs/presets/demo.yaml", "rows.lab.num_rows=60", f"storage={tmp_path}"]
    command = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *ours]
    done = subprocess.run(command, cwd=ROOT, env=head.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "rows" / "manifest.json").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_strangers_get_nothing(head: JobCluster) -> None:
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/cluster_status", "/logs"):
        with pytest.raises(urllib.error.HTTPError) as stranger:
            urllib.request.urlopen(f"{head.dashboard}{path}", timeout=30)
        assert stranger.value.code == 401, path


@pytest.mark.ray
@pytest.mark.slow
def test_the_doctor_looks_at_every_node(head: JobCluster, tmp_path: Path) -> None:
    def doctor(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "cluster.doctor", "jobs/presets/demo.yaml", f"storage={tmp_path}", *words]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=head.environ | {"RAY_ADDRESS": head.address},
            capture_output=True,
            text=True,
            timeout=300,
        )

    fit = doctor()
    for line in (
        "ok    nodes",
        "3 of 3 answer",
        "ok    token",
        "ok    storage",
        "ok    ports between nodes",
        "ok    transformers",
    ):
        assert line in fit.stdout, fit.stdout + fit.stderr
    unfit = doctor(
        "policy.learner.num_workers=40",
        "policy.learner.packs_per_step=40",
        "annotate.pool.labels={role: nobody}",
        "base.model=/nowhere/model",
        "base.pretrain=null",
    )
    assert unfit.returncode == 1
    for line in (
        "policy.learner.num_workers=6",
        "no node has the labels role=nobody",
        "-> start nodes with `ray start --labels role=nobody` or annotate.pool.labels={}",
        "nothing at /nowhere/model/config.json",
    ):
        assert line in unfit.stdout, unfit.stdout + unfit.stderr


TRAINING = """
import time
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from cluster.connect import connect
with connect(num_cpus=2, object_store_bytes=100 * 2**20, dashboard=True):
    TorchTrainer(lambda: time.sleep(6), scaling_config=ScalingConfig(num_workers=1)).fit()
print("trained")
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.case("28-two-rays")
def test_a_training_beside_another_ray_prints_no_traceback(ray_cluster: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", TRAINING]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
    assert "(PlacementGroupCleaner" not in done.stdout + done.stderr
    assert "Found multiple active Ray instances" not in done.stdout + done.stderr
