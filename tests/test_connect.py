"""Meeting Ray: one's own small cluster, one that is already there, one that does not answer."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from cluster.connect import REPOSITORY, connect, worker_environment

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
import json, ray
from cluster.connect import connect

@ray.remote
def name():
    from data.record import Record
    return Record.__module__

with connect(num_cpus=3, object_store_bytes=100 * 2**20) as cluster:
    found = [cluster.num_cpus, cluster.num_nodes, cluster.is_local, bool(cluster.address), ray.get(name.remote())]
    print(json.dumps(found))
    assert not ray.data.DataContext.get_current().enable_progress_bars
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
