"""The demo on a cluster with a token: its metrics in a real Prometheus, what listens where, what strangers may read.

`make cluster-test`; needs Debian's `prometheus` for the first of these.
"""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import free_port, wait_for
from support import tiny_run
from support.endpoint import Endpoint
from support.job_cluster import JobCluster
from support.listening import ALL, LOOPBACK, NODE, kind, listening, ports
from test_monitoring import DASHBOARDS, FOLDER, expressions, queried

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NOT_ALWAYS = {
    ("driver", ALL),  # while a job runs
    ("worker", LOOPBACK),  # while a training runs
    ("worker", NODE),
    # Ports that the first Ray of a machine has.
    ("dashboard", ALL),
    ("monitor", ALL),
}
"""What the page on security lists, but nothing need be there now."""
AGENT_PATHS = ("/api/job_agent/jobs/", "/api/serve/applications/", "/logs")
METRICS = re.compile(rb"# HELP \w+ ")
SECURITY = (tiny_run.REPOSITORY / "SECURITY.md").read_text()


@contextmanager
def prometheus(folder: Path, ray_folder: Path) -> Iterator[str]:
    """Ours, as shipped but for a scrape every second, and for the folder of this Ray; its URL."""
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text().replace("/tmp/ray/", f"{ray_folder}/"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "alerts.yaml")]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    words = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
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
def serving(policy: Path, log_folder: Path, environ: Mapping[str, str], *settings: str) -> Iterator[Endpoint]:
    """`python -m serve`, until it is ready."""
    port = free_port()
    words = [sys.executable, "-m", "serve", f"policy={policy}", f"port={port}", "num_cpus=0.2", *settings]
    output = log_folder / "serve.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            words, cwd=tiny_run.REPOSITORY, env=dict(environ), stdout=log, stderr=subprocess.STDOUT
        )
    endpoint = Endpoint(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, output.read_text()[-2000:]
            assert time.monotonic() < deadline, output.read_text()[-2000:]
            try:
                if endpoint.get("/readyz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        yield endpoint
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True)
class ServedRun:
    cluster: JobCluster
    endpoint: Endpoint
    prometheus: str | None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedRun]:
    folder = tmp_path_factory.mktemp("served")
    with (
        JobCluster(folder) as cluster,
        prometheus(folder, cluster.ray_folder) if shutil.which("prometheus") else nullcontext() as url,
    ):
        words = [
            sys.executable,
            "-m",
            "jobs.run",
            "jobs/presets/demo.yaml",
            f"storage={folder}",
            *tiny_run.TINY,
            "rows.lab.num_rows=600",
        ]
        environ = cluster.environ | {"RAY_ADDRESS": cluster.address}
        done = subprocess.run(words, cwd=tiny_run.REPOSITORY, env=environ, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        full = ("max_queued_requests=1", "max_ongoing_requests=1")
        with serving(folder / "demo", folder, environ, *full) as endpoint:
            yield ServedRun(cluster, endpoint, url)


def test_every_queried_metric_is_there(served: ServedRun) -> None:
    if (url := served.prometheus) is None:
        pytest.skip("no `prometheus` here: apt-get install prometheus")
    for seed in range(20):
        assert served.endpoint.chat(seed=seed, score=True)[0] == 200
        assert list(served.endpoint.stream(seed=seed)), "its first text has a time"
    assert served.endpoint.chat(attributes={"humour": 4})[0] == 400
    time.sleep(15)  # Ray hands its metrics on every ten seconds
    names = set(ask(url, "label/__name__/values"))
    assert queried() - names == set(), f"not among {len(names)}"
    wrong = {
        e: problem
        for path in [*DASHBOARDS, FOLDER / "alerts.yaml"]
        for e in expressions(path)
        if (problem := _problem(url, e))
    }
    assert wrong == {}
    rules = ask(url, "rules")["groups"]
    assert all(rule["health"] == "ok" for group in rules for rule in group["rules"])
    metadata = ask(url, "metadata")
    assert all(metadata[name][0]["help"] for name in metadata if name.startswith("ray_steerlm"))


@pytest.mark.case("Prometheus finds nothing behind python -m serve")
def test_the_shipped_file_finds_an_endpoint_that_has_a_ray_of_its_own(tiny_policy: str, tmp_path: Path) -> None:
    if not shutil.which("prometheus"):
        pytest.skip("no `prometheus` here: apt-get install prometheus")
    folder = Path(tempfile.mkdtemp(prefix="r"))  # short: sockets lie in it
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    try:
        with (
            serving(Path(tiny_policy), tmp_path, environ | {"RAY_TMPDIR": str(folder)}, "predictor=null") as endpoint,
            prometheus(tmp_path, folder / "ray") as url,
        ):
            assert endpoint.chat()[0] == 200
            deadline = time.monotonic() + 60
            while not ask(url, "query", query="sum(ray_steerlm_requests_total)")["result"]:
                assert time.monotonic() < deadline, ask(url, "targets")
                time.sleep(1)
            assert b"ray_steerlm_requests_total" in endpoint.get("/metrics")[1]
        assert list((folder / "ray").glob("steerlm_endpoint_*")) == [], "the list goes with the endpoint"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_listens_where_is_what_the_page_on_security_says(served: ServedRun) -> None:
    found = listening(served.cluster.processes())
    print("\n" + "\n".join(f"{kind:18} {where}" for kind, where in sorted(found)))
    written = {
        (kind, where.strip()) for kind, where in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", SECURITY, re.MULTILINE)
    }
    assert found - written == set(), "SECURITY.md does not know of it"
    assert written - found <= NOT_ALWAYS, "SECURITY.md lists what is not there"


def test_an_agent_of_a_node_tells_strangers_nothing_but_figures(served: ServedRun) -> None:
    agents = [p for p in served.cluster.processes() if kind(p) == "DashboardAgent"]
    assert agents
    metrics = {port for port in ports(agents) if METRICS.match((answered(port, "GET", "/metrics") or (0, b""))[1])}
    every = (
        (port, method, path) for port in ports(agents) for path in AGENT_PATHS for method in ("GET", "POST", "DELETE")
    )
    answers = {where: reply for where in every if (reply := answered(*where))}
    print("\n" + "\n".join(f"{method:6} {port} {path}: {reply}" for (port, method, path), reply in answers.items()))
    refused = {status for (port, _, _), (status, _) in answers.items() if port not in metrics}
    assert refused
    assert refused <= {401, 403}
    # The port of the metrics serves them under every path, and takes nothing.
    assert all(
        status == 405 or METRICS.match(body) for (port, _, _), (status, body) in answers.items() if port in metrics
    )


def answered(port: int, method: str, path: str) -> tuple[int, bytes] | None:
    """Status and beginning of what a stranger hears; None where no HTTP is spoken."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read(80)
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read(80)
    except (OSError, http.client.HTTPException):
        return None


def _problem(url: str, expression: str) -> str:
    """Why Prometheus could not evaluate it; "" if it could."""
    try:
        ask(url, "query", query=expression.replace("$session", ".*"))
    except urllib.error.HTTPError as refused:
        return str(json.loads(refused.read())["error"])
    return ""
