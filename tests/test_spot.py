"""A notice of AWS that this machine will be taken away reaches Ray as a drain. The instance's metadata are a fake."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.spot import LEAST_NOTICE_S, Metadata, leave, retried, watch

SPOT = Path(__file__).resolve().parent.parent / "cluster" / "spot.py"


class Instance:
    """Metadata as IMDSv2 gives them: a session by PUT, refused without one; 404 until there is a notice."""

    def __init__(self) -> None:
        self.until: float | None = None
        self.sessions = 0
        self.asked = 0

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, bytes]:
        if (method, path) == ("PUT", "/latest/api/token"):
            assert int(headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
            self.sessions += 1
            return 200, f"session-{self.sessions}".encode()
        if headers["X-aws-ec2-metadata-token"] != f"session-{self.sessions}":
            return 401, b""
        if (method, path) != ("GET", "/latest/meta-data/spot/instance-action") or self.until is None:
            self.asked += 1
            return 404, b""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.until))
        return 200, json.dumps({"action": "terminate", "time": at}).encode()


@contextmanager
def served(instance: Instance) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            status, body = instance.answer(self.command, self.path, self.headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_no_notice_then_one_and_a_session_that_ends_is_begun_again() -> None:
    instance = Instance()
    with served(instance) as endpoint:
        metadata = Metadata(endpoint)
        assert metadata.notice() is None
        assert metadata.notice() is None
        assert instance.sessions == 1
        instance.until, instance.sessions = 1_800_000_000.0, 7  # the session is unknown now
        assert metadata.notice() is None
        assert metadata.notice() == 1_800_000_000.0
        assert instance.sessions == 8


def test_a_machine_without_metadata_is_asked_on_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(urllib.error.URLError):
        Metadata("http://127.0.0.1:9").notice()
    answers = iter([OSError("refused"), OSError("refused"), None, OSError("again"), time.time() + 120])
    drained: list[float] = []

    def notice() -> float | None:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def drain(seconds: float, why: str) -> bool:
        drained.append(seconds)
        return why == "spot interruption"

    watch(notice, drain, every_s=0)
    assert 118 < drained[0] <= 120
    assert len(drained) == 1
    assert capsys.readouterr().out.count("no answer about spot interruptions") == 2


def test_a_cluster_that_does_not_answer_is_told_again_until_the_time_is_over() -> None:
    tried: list[int] = []

    def fails_twice() -> bool:
        tried.append(1)
        if len(tried) < 2:
            raise ConnectionError("no GCS")
        return len(tried) > 2

    retried(fails_twice, time.time() + 60)
    assert len(tried) == 3
    started = time.monotonic()
    retried(lambda: False, time.time() - 1)
    assert time.monotonic() - started < LEAST_NOTICE_S


def test_a_pod_whose_head_is_gone_does_not_wait() -> None:
    class Gone:
        def drain(self, seconds: float, why: str) -> bool:
            raise ConnectionError("no GCS")

    started = time.monotonic()
    leave(Gone(), 60)  # type: ignore[arg-type]
    assert time.monotonic() - started < 1


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, *(node.node_id for node in nodes), flush=True)
from ray._raylet import GcsClient
client = GcsClient(address=cluster.address)
for _ in sys.stdin:
    print(*(node.hex() if isinstance(node, bytes) else node for node in client.get_draining_nodes()), flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
def test_the_notice_drains_this_node_of_a_real_cluster_and_no_other() -> None:
    instance, pipe = Instance(), subprocess.PIPE
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=pipe, stdout=pipe, text=True)
    assert cluster.stdin
    assert cluster.stdout
    address, mine, other = cluster.stdout.readline().split()
    with served(instance) as endpoint:
        environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
        command = [sys.executable, str(SPOT), "watch", "--address", address, "--node-id", mine, "--every-s", "0.2"]
        watcher = subprocess.Popen(command, env=environ, cwd="/", stdout=pipe, text=True)
        while instance.asked < 3:
            assert watcher.poll() is None
            time.sleep(0.1)
        assert draining(cluster) == []
        instance.until = time.time() + 100
        said, _ = watcher.communicate(timeout=120)
        assert watcher.returncode == 0, said
        assert "this instance will be taken away in " in said
        # An idle node that is drained ends by itself; a busy one is listed until then.
        gone = subprocess.run(
            [sys.executable, str(SPOT), "leave", "--address", address, "--node-id", mine], timeout=120
        )
        assert gone.returncode == 0
        assert other not in draining(cluster)
    cluster.stdin.close()
    cluster.wait(60)


def draining(cluster: "subprocess.Popen[str]") -> list[str]:
    assert cluster.stdin
    assert cluster.stdout
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    return cluster.stdout.readline().split()
