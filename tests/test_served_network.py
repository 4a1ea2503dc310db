"""The endpoint without keys, called from another host, in every way that a page shows to start it.

Hosts are network namespaces. `make cluster-test`; skipped with the reason where they are not permitted.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.network_cluster import ROOT, TwoHosts, permitted

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.case("B9: without keys, from another host, in every way to start it"),
]

PORT = 8000
SMALL = {"num_cpus": 0.1, "engine": {"max_num_seqs": 2}, "scorer": {"num_cpus": 0.1}}
BODY = '{"messages": [{"role": "user", "content": "Tell me about owls."}], "max_tokens": 2}'
JSON = "Content-Type: application/json"
NEIGHBOUR = """
import ray.serve
@ray.serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Neighbour:
    async def __call__(self, request): return "still here"
ray.serve.start(http_options={"host": "0.0.0.0", "port": PORT})
ray.serve.run(Neighbour.bind(), name="neighbour", route_prefix="/neighbour")
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    if reason := permitted():
        pytest.skip(reason)
    with TwoHosts(tmp_path, nodes=1) as hosts:
        yield hosts


def kuberay_file(policy: str) -> dict[str, Any]:
    """What cluster/kuberay/rayservice.yaml gives to Serve, without its keys and of this machine's size."""
    text = (ROOT / "cluster/kuberay/rayservice.yaml").read_text()
    file: dict[str, Any] = yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"])
    assert file["http_options"] == {"host": "0.0.0.0", "port": PORT}
    [application] = file["applications"]
    for name in ("host", "keys", "teams"):
        del application["args"][name]
    application["args"] |= SMALL | {"num_gpus": 0, "max_replicas": 1, "models": [{"name": "tiny", "policy": policy}]}
    return file


def status(hosts: TwoHosts, host: int, url: str, *words: str) -> int:
    """Of a call from a host; 0 = nothing listens there."""
    command = ("curl", "-s", "-o", "/dev/null", "-m", "20", "-w", "%{http_code}", url, *words)
    return int(hosts.run(host, *command).communicate(timeout=40)[0])


@contextmanager
def started(hosts: TwoHosts, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A command on the first host, once the endpoint answers there; stopped by Ctrl-C at the end."""
    process = hosts.run(0, *words)
    try:
        deadline = time.monotonic() + 240
        while status(hosts, 0, f"http://127.0.0.1:{PORT}/healthz") != 200:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(1)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def require_only_here(hosts: TwoHosts, listens_everywhere: bool) -> None:
    here, there = f"http://127.0.0.1:{PORT}", f"http://{hosts.addresses[0]}:{PORT}"
    chat = "/v1/chat/completions"
    refused = 403 if listens_everywhere else 0
    for path in ("/", "/docs", "/healthz", "/readyz", "/v1/models", "/v1/attributes"):
        assert status(hosts, 0, here + path) == 200, path
        assert status(hosts, 0, here + path, "-H", "Host: evil.example") == 403, path
        assert status(hosts, 1, there + path) == refused, path
        assert status(hosts, 1, there + path, "-H", f"Host: 127.0.0.1:{PORT}") == refused, path
    assert status(hosts, 0, here + chat, "-H", JSON, "-d", BODY) == 200
    assert status(hosts, 0, here + chat, "-d", BODY) == 415
    assert status(hosts, 0, here + chat, "-H", JSON, "-H", "Origin: http://evil.example", "-d", BODY) == 403
    local = ("-H", f"Host: 127.0.0.1:{PORT}", "-H", "X-Forwarded-For: 127.0.0.1", "-H", "X-Real-IP: 127.0.0.1")
    assert status(hosts, 1, there + chat, *local, "-H", JSON, "-d", BODY) == refused


def require_clean(process: "subprocess.Popen[str]") -> str:
    """It ended by itself, and printed nothing that looks like a failure."""
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert not re.search("Traceback|failed|Error", said), said
    return said


def test_the_command(hosts: TwoHosts, tiny_policy: str) -> None:
    command = (sys.executable, "-m", "serve", f"policy={tiny_policy}", "num_cpus=0.1")
    with started(hosts, *command) as process:
        require_only_here(hosts, listens_everywhere=False)
    # Not always the last line, nor one of its own: Ray prints the log of the requests just before from another thread.
    assert "serve: stopping" in require_clean(process)
    neighbour = hosts.run(0, sys.executable, "-c", NEIGHBOUR.replace("PORT", str(PORT)))
    assert neighbour.wait(120) == 0, neighbour.communicate()[0]
    with started(hosts, *command) as process:
        require_only_here(hosts, listens_everywhere=True)
    require_clean(process)
    assert status(hosts, 1, f"http://{hosts.addresses[0]}:{PORT}/neighbour") == 200, "other people's applications stay"


def test_a_stop_before_it_is_up(hosts: TwoHosts, tiny_policy: str) -> None:
    process = hosts.run(0, sys.executable, "-m", "serve", f"policy={tiny_policy}", "num_cpus=0.1")
    assert process.stdout is not None
    said = ""
    while "Started Serve" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    assert "serve: stopping" in require_clean(process)


def test_a_serve_file(hosts: TwoHosts, tiny_policy: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(kuberay_file(tiny_policy)))
    with started(hosts, "serve", "run", str(file)):
        require_only_here(hosts, listens_everywhere=True)
