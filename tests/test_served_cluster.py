"""A real Prometheus beside a real cluster, through Ray's own service discovery: every metric that a dashboard or an alert asks for is there.

`make cluster-test`; needs Debian's `prometheus`, and is skipped without.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from conftest import free_port, wait_for
from endpoint import Endpoint
from job_cluster import JobCluster
from test_monitoring import DASHBOARDS, FOLDER, asked_for, expressions

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="no `prometheus` here: apt-get install prometheus"),
]


@contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """Ours, as shipped but for a scrape every second; its URL."""
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "alerts.yaml")]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    words = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.loads(answer.read())["data"]


@contextmanager
def serving(cluster: JobCluster, run: Path) -> Iterator[Endpoint]:
    port = free_port()
    words = [sys.executable, "-m", "serve", f"policy={run}", f"port={port}", "num_cpus=0.2", "max_queued_requests=0", "max_ongoing_requests=1"]
    with (run / "serve.log").open("w") as log:
        process = subprocess.Popen(words, cwd=tiny_run.REPOSITORY, env=cluster.environ | {"RAY_ADDRESS": cluster.address}, stdout=log, stderr=subprocess.STDOUT)
    endpoint = Endpoint(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (run / "serve.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (run / "serve.log").read_text()[-2000:]
            try:
                if endpoint.get("/readyz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        yield endpoint
    finally:
        process.terminate()
        process.wait(60)


def test_every_metric_that_is_asked_for_is_there(tmp_path: Path) -> None:
    with JobCluster(tmp_path) as cluster, prometheus(tmp_path) as url:
        words = [sys.executable, "-m", "jobs.run", "jobs/presets/demo.yaml", f"storage={tmp_path}", *tiny_run.TINY, "rows.lab.num_rows=600"]
        environ = cluster.environ | {"RAY_ADDRESS": cluster.address}
        done = subprocess.run(words, cwd=tiny_run.REPOSITORY, env=environ, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        with serving(cluster, tmp_path / "demo") as endpoint:
            for seed in range(20):
                assert endpoint.chat(seed=seed, score=True)[0] == 200
            assert endpoint.chat(attributes={"humour": 4})[0] == 400
            time.sleep(15)  # Ray hands its metrics on every ten seconds
            names = set(ask(url, "label/__name__/values"))
            assert asked_for() - names == set()
            wrong = {e: problem for path in [*DASHBOARDS, FOLDER / "alerts.yaml"] for e in expressions(path) if (problem := _problem(url, e))}
            assert wrong == {}
            rules = ask(url, "rules")["groups"]
            assert all(rule["health"] == "ok" for group in rules for rule in group["rules"])
            metadata = ask(url, "metadata")
            assert all(metadata[name][0]["help"] for name in metadata if name.startswith("ray_steerlm"))


def _problem(url: str, expression: str) -> str:
    """Why Prometheus could not evaluate it; "" if it could."""
    try:
        ask(url, "query", query=expression.replace("$session", ".*"))
    except urllib.error.HTTPError as refused:
        return str(json.loads(refused.read())["error"])
    return ""
