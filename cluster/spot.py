"""Tells Ray that this node will soon be gone, so that trainings keep a checkpoint and Serve moves its replicas first.

    python spot.py watch      on AWS, beside `ray start`: asks the instance for the notice of a spot interruption
    python spot.py leave      at once, and waits until the node's work is done: the preStop hook of a Kubernetes pod

It imports the standard library and Ray alone: `ray up` copies this one file to each node. Sources: AWS EC2's guide,
"Spot Instance interruption notices" (two minutes' notice; asking every five seconds is advised) and IMDSv2.
"""

import argparse
import contextlib
import fcntl
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

METADATA = "http://169.254.169.254"
"""The instance's own; AWS's SDKs read another from AWS_EC2_METADATA_SERVICE_ENDPOINT."""
SESSION_S = 21600
ANSWER_TIMEOUT_S = 2.0
RAY_TIMEOUT_S = 10.0
LEAST_NOTICE_S = 1.0


class Metadata:
    """The instance's metadata, with a session (IMDSv2)."""

    def __init__(self, endpoint: str):
        self._endpoint, self._token = endpoint.rstrip("/"), ""

    def notice(self) -> float | None:
        """When the instance will be taken away, seconds since 1970; None = no notice. OSError: no answer."""
        try:
            found = json.loads(self._get("spot/instance-action"))
        except urllib.error.HTTPError as error:
            if error.code == 401:
                self._token = ""  # the session is over: the next call begins one
            if error.code in (401, 404):
                return None
            raise
        return datetime.fromisoformat(found["time"].replace("Z", "+00:00")).astimezone(UTC).timestamp()

    def _get(self, name: str) -> bytes:
        if not self._token:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(SESSION_S)}
            self._token = self._answer("api/token", lifetime, "PUT").decode()
        return self._answer(f"meta-data/{name}", {"X-aws-ec2-metadata-token": self._token}, "GET")

    def _answer(self, path: str, headers: dict[str, str], method: str) -> bytes:
        request = urllib.request.Request(f"{self._endpoint}/latest/{path}", headers=headers, method=method)
        # Never through a proxy: the address means this machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            body: bytes = answer.read()
        return body


class RayNode:
    """This machine's node of the Ray cluster at `address` (HOST:PORT)."""

    def __init__(self, address: str, node_id: str = ""):
        """`node_id`: hexadecimal; "" = the node with this machine's address in the cluster."""
        self._address, self._node_id = address, node_id

    def drain(self, seconds: float, why: str) -> bool:
        """Announce that it will be gone in so many seconds; was that accepted? Raises as Ray does without a cluster."""
        from ray.core.generated import autoscaler_pb2

        node_id = self._alive_id()
        if node_id is None:
            return True  # nothing to announce
        deadline_ms = int((time.time() + seconds) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, rejection = self._client().drain_node(node_id, reason, why, deadline_ms)
        if not accepted:
            say(f"Ray does not drain node {node_id}: {rejection}")
        return bool(accepted)

    def is_alive(self) -> bool:
        return self._alive_id() is not None

    def _client(self) -> Any:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        return GcsClient(address=self._address)

    def _alive_id(self) -> str | None:
        """Of the node; None if it has left the cluster."""
        import ray.util
        from ray.core.generated import gcs_pb2

        nodes = self._client().get_all_node_info(timeout=RAY_TIMEOUT_S)
        alive = {i.hex(): n for i, n in nodes.items() if n.state == gcs_pb2.GcsNodeInfo.ALIVE}
        if self._node_id:
            return self._node_id if self._node_id in alive else None
        here = ray.util.get_node_ip_address()
        return next((i for i, n in alive.items() if n.node_manager_address == here), None)


def watch(notice: Callable[[], float | None], drain: Callable[[float, str], bool], every_s: float) -> None:
    """Ask for the notice until there is one, then announce it until Ray has accepted or the time is over."""
    silent = False
    while True:
        try:
            until, silent = notice(), False
        except (OSError, ValueError, KeyError) as error:  # one line, whatever the number of times
            if not silent:
                say(f"no answer about spot interruptions ({error}); asking every {every_s:g} s")
            until, silent = None, True
        if until is not None:
            break
        time.sleep(every_s)
    say(f"this instance will be taken away in {until - time.time():.0f} s")
    retried(lambda: drain(max(until - time.time(), LEAST_NOTICE_S), "spot interruption"), until)


def retried(drain: Callable[[], bool], until: float) -> None:
    """Once at least, then every second until the time is over: a busy cluster may not answer at once."""
    while True:
        try:
            if drain():
                return
        except Exception as error:  # whatever it is, the node has only seconds
            say(f"Ray cannot be told: {error}")
        if time.time() > until:
            return
        time.sleep(1)


def leave(node: RayNode, grace_s: float) -> None:
    """Announce the end of this node, and wait until Ray has ended it, at most so long. Without a cluster: at once."""
    until = time.time() + grace_s
    with contextlib.suppress(Exception):  # a head that has gone before: nobody is left to wait for
        node.drain(grace_s, "the pod is stopped")
        while node.is_alive() and time.time() < until:
            time.sleep(1)


def only_one() -> bool:
    """Does no other watcher run here? The lock is held until this process ends."""
    file = os.open(
        os.path.join(tempfile.gettempdir(), f"steerlm-spot-{os.getuid()}.lock"), os.O_CREAT | os.O_RDWR, 0o600
    )
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def say(line: str) -> None:
    print(f"spot: {line}", flush=True)


def main() -> None:
    """See the module."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("what", choices=["watch", "leave"])
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS", "127.0.0.1:6379"), help="HOST:PORT of Ray")
    parser.add_argument("--node-id", default="", help="the node, if this machine has several")
    parser.add_argument("--every-s", type=float, default=5.0, help="watch: seconds between questions")
    parser.add_argument("--grace-s", type=float, default=90.0, help="leave: seconds that the node's work may take")
    given = parser.parse_args()
    node = RayNode(given.address, given.node_id)
    if given.what == "leave":
        leave(node, given.grace_s)
    elif given.node_id or only_one():
        endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA)
        watch(Metadata(endpoint).notice, node.drain, given.every_s)


if __name__ == "__main__":
    main()
