"""The demo on a cluster with a token: its metrics in a real Prometheus, what listens where, what strangers may read.

`make cluster-test`; needs Debian's `prometheus` for the first of these.
"""

import http.client
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
from support import tiny_run
from support.endpoint import Endpoint, started
from support.job_cluster import JobCluster
from support.listening import ALL, LOOPBACK, NODE, kind, listening, ports
from support.prometheus import MISSING, ask, prometheus
from test_monitoring import DASHBOARDS, FOLDER, expressions, queried

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NEVER_INCREASED = "ray_steerlm_answers_not_kept_total"
"""Feedback is off here, and Ray exports a counter from its first increase on."""
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
        settings = [f"policy={folder / 'demo'}", "num_cpus=0.2", "max_queued_requests=1", "max_ongoing_requests=1"]
        serving = [sys.executable, "-m", "serve", *settings, "port={port}"]
        with started(serving, folder, environ) as endpoint:
            yield ServedRun(cluster, endpoint, url)


def test_every_queried_metric_is_there(served: ServedRun) -> None:
    if (url := served.prometheus) is None:
        pytest.skip(MISSING)
    for seed in range(20):
        assert served.endpoint.chat(seed=seed, score=True)[0] == 200
        assert list(served.endpoint.stream(seed=seed)), "its first text has a time"
    assert served.endpoint.chat(attributes={"humour": 4})[0] == 400
    time.sleep(15)  # Ray hands its metrics on every ten seconds
    names = set(ask(url, "label/__name__/values"))
    assert queried() - names == {NEVER_INCREASED}, f"not among {len(names)}"
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
