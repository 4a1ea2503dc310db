"""Meeting Ray: one's own small cluster, one that is already there, one that does not answer."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import ray.experimental.internal_kv
from ray._private import ray_constants

from cluster.connect import NOT_IN_TIME, REPOSITORY, NotStarted, connect, make_token_private, worker_environment

ROOT = Path(__file__).resolve().parent.parent


def run_python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_workers_import_from_the_repository_first(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", str(ROOT)]))
    assert REPOSITORY == ROOT
    assert worker_environment()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]


@pytest.mark.case("B13: ~/.ray/auth_token")
@pytest.mark.parametrize("before", ["nothing", "a token for all to read", "a token of another file", "no tokens"])
def test_the_token_is_for_this_user_alone(before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / ".ray" / "auth_token"
    if before == "a token of another file":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    elif before == "no tokens":
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    elif before == "a token for all to read":
        file.parent.mkdir()
        file.write_text("theirs")
        file.chmod(0o644)
    make_token_private()
    if before in ("a token of another file", "no tokens"):
        assert not file.exists()
        return
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text()
    assert token == "theirs" if before == "a token for all to read" else len(token) == 64
    make_token_private()
    assert file.read_text() == token
    assert os.listdir(file.parent) == ["auth_token"]


@pytest.mark.ray
@pytest.mark.case("28-two-rays")
def test_an_actor_of_an_actor_names_its_own_ray_where_there_are_several(ray_cluster) -> None:
    """As Ray Train's controller, which has an environment of its own, and the cleaner that it starts."""

    @ray.remote(num_cpus=0)
    class Cleaner:
        def found(self) -> str:
            from ray._private import services

            services.find_gcs_addresses = lambda: {"127.0.0.1:1", "127.0.0.1:2"}
            return str(services.canonicalize_bootstrap_address_or_die(None))

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"OTHER": "1"}})
    class Controller:
        def found(self, cleaner: type) -> str:
            return str(ray.get(ray.remote(num_cpus=0)(cleaner).remote().found.remote()))

    kind = Cleaner.__ray_metadata__.modified_class
    assert ray.get(Controller.remote().found.remote(kind)) == ray.get_runtime_context().gcs_address
    assert os.environ.get("RAY_ADDRESS", "") != ray.get_runtime_context().gcs_address, "the driver's children start own"


@pytest.mark.ray
@pytest.mark.case("28-two-rays")
def test_a_ray_without_a_dashboard_does_not_name_the_one_of_another(ray_cluster) -> None:
    """Ray Train asks there whether its controller lives, and another Ray's answer ended a training."""
    name, space = ray_constants.DASHBOARD_ADDRESS, ray_constants.KV_NAMESPACE_DASHBOARD
    port = int(ray.experimental.internal_kv._internal_kv_get(name, namespace=space).rpartition(b":")[2])
    assert port not in range(ray_constants.DEFAULT_DASHBOARD_PORT, ray_constants.DEFAULT_DASHBOARD_PORT + 100)


@pytest.mark.ray
def test_a_ray_that_runs_in_this_process_is_used_and_left_alone(ray_cluster):
    with connect() as cluster:
        assert cluster.is_local
        assert cluster.num_nodes == 1
        assert cluster.num_cpus == ray.cluster_resources()["CPU"]
        assert ray.is_initialized()
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_ray_that_runs_is_used_when_the_block_fails_too(ray_cluster):
    with pytest.raises(ZeroDivisionError), connect():
        1 / 0  # noqa: B018
    assert ray.is_initialized()


@pytest.mark.ray
def test_more_cpus_than_the_running_ray_has_is_a_warning(ray_cluster, caplog):
    with caplog.at_level(logging.WARNING), connect(num_cpus=10_000) as cluster:
        assert cluster.num_cpus < 10_000
    assert "num_cpus: 10000 requested" in caplog.text


@pytest.mark.ray
def test_a_local_ray_is_started_imports_our_rooms_and_is_gone_after():
    code = """
import json, os, ray
from cluster.connect import connect

@ray.remote
def name():
    from data.record import Record
    return Record.__module__

with connect(num_cpus=3, object_store_bytes=100 * 2**20) as cluster:
    found = [cluster.num_cpus, cluster.num_nodes, cluster.is_local, bool(cluster.address), ray.get(name.remote())]
    print(json.dumps(found))
    assert not ray.data.DataContext.get_current().enable_progress_bars
    assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
assert not ray.is_initialized()
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [3, 1, True, True, "data.record"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "nothing answers there"),
        ("http://127.0.0.1:8265", "is no HOST:PORT"),
        ("ray://127.0.0.1:10001", "is no HOST:PORT"),
        ("head", "is no HOST:PORT"),
    ],
)
def test_an_address_that_does_not_answer_is_one_sentence(address, said):
    done = run_python(
        "from cluster.connect import *\ntry:\n    connect().__enter__()\n"
        "except Unreachable as error:\n    print(error)",
        RAY_ADDRESS=address,
    )
    assert done.returncode == 0, done.stderr
    assert f"RAY_ADDRESS={address}" in done.stdout
    assert said in done.stdout
    assert "unset RAY_ADDRESS" in done.stdout


def test_a_machine_too_busy_to_start_ray_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's words are those of its own source, where no setting makes it wait longer."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    node = Path(ray._private.node.__file__).read_text(encoding="utf-8")
    said = "".join(re.findall(r'"(The current node timed out[^"]*)"', node))
    assert NOT_IN_TIME in said

    def busy(**_: object) -> None:
        raise Exception(said)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(NotStarted, match="run the same command again"), connect():
        pass
