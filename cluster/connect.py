"""Connect to Ray: the cluster that `RAY_ADDRESS` names (as in `ray job submit`), or a small one on this machine.

Knows no job and no model. It describes the cluster, and leaves nothing running that it started.
"""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from cluster.worker_setup import SETUP_HOOK

REPOSITORY = Path(__file__).resolve().parent.parent
"""Workers must import our packages from here."""

REACH_TIMEOUT_S = 10
"""How long an address may take to answer; Ray itself would try for minutes."""

log = logging.getLogger(__name__)


NOT_IN_TIME = "timed out during startup"
"""What Ray says if its own processes are not ready within half a minute; no setting of Ray's makes it wait longer."""


class NotStarted(ConnectionError):
    """A Ray on this machine did not start."""


class Unreachable(ConnectionError):
    """`RAY_ADDRESS` names no cluster that answers."""


@dataclass(frozen=True)
class ConnectedCluster:
    """What we are connected to, at the time of connecting: an autoscaler may add nodes later."""

    address: str
    num_cpus: float
    num_gpus: float
    num_nodes: int
    is_local: bool
    """On this machine only, not named by `RAY_ADDRESS`."""
    dashboard: str = ""
    """Where the Ray dashboard is, "" without one."""

    def __str__(self) -> str:
        where = "on this machine" if self.is_local else f"at {self.address}"
        dashboard = f", dashboard at http://{self.dashboard}" if self.dashboard else ""
        size = f"{self.num_nodes} node(s), {self.num_cpus:g} logical CPUs, {self.num_gpus:g} GPUs"
        return f"Ray {ray.__version__} {where}: {size}{dashboard}"


def on_this_machine() -> bool:
    """Does `connect` start a Ray of its own here, or take the one this process has, rather than join a cluster?"""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


@contextmanager
def connect(
    num_cpus: int | None = None, object_store_bytes: int | None = None, dashboard: bool = False
) -> Iterator[ConnectedCluster]:
    """The Ray cluster for the block; shut down after it if it was started for it.

    `num_cpus` and `object_store_bytes` size a local Ray and mean nothing elsewhere. `num_cpus` is logical and may
    exceed the machine's: pinned actors that leave Ray Data less than one free CPU stall it silently (Ray issue 63513).

    Raises Unreachable if `RAY_ADDRESS` is set and nothing answers there, NotStarted if a busy machine starts no Ray.
    """
    address, is_local = os.environ.get("RAY_ADDRESS", ""), on_this_machine()
    if ray.is_initialized():
        cluster = _described(is_local)
        if num_cpus is not None and cluster.num_cpus < num_cpus:
            log.warning(
                "num_cpus: %d requested, but this process is already connected to a Ray with %g; it is used as it is",
                num_cpus,
                cluster.num_cpus,
            )
        yield cluster
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Train would send a worker's print both to its log and to the driver, so that every line comes twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Token authentication stays on; that it is on is no warning.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    url = _start(num_cpus, object_store_bytes, dashboard) if is_local else _join(address)
    try:
        _quiet()
        yield _described(is_local, url)
    finally:
        ray.shutdown()


def _start(num_cpus: int | None, object_store_bytes: int | None, dashboard: bool) -> str:
    """Start a Ray that listens on loopback alone; returns the dashboard's host and port, "" without one."""
    make_token_private()
    # Ray Train's actor that waits for announced ends of nodes: nobody announces any here, and its start takes seconds.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # On Linux, Ray replaces 127.0.0.1 and listens on all interfaces, ready for a second node that never comes.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        context = ray.init(
            address="local",  # without it, Ray would join any other cluster on this machine
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes,
            include_dashboard=dashboard,
            dashboard_port=None if dashboard else _unused_port(),
            logging_level="WARNING",
            runtime_env={"env_vars": worker_environment(), "worker_process_setup_hook": SETUP_HOOK},
        )
    except Exception as error:  # Ray has no type of its own for it
        if NOT_IN_TIME not in str(error):
            raise
        raise NotStarted(
            "Ray did not start on this machine within 30 seconds: it is busy, or short of memory; run the same command "
            "again when it is quieter, or set RAY_ADDRESS to a Ray that runs"
        ) from error
    return str(context.address_info["webui_url"] or "")


def _unused_port() -> int:
    """For a Ray without a dashboard, which names the port of one all the same.

    It would name 8265. Ray Train, which asks there whether its controller lives, would ask the dashboard of another Ray
    on this machine, hear that there is no such controller, and end the training.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_token_private() -> None:
    """Let only this user read the token in ~/.ray, and make one if Ray would: it writes for all to read."""
    file = Path.home() / ".ray" / "auth_token"
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    wanted = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and not given
    # A home that cannot be written is Ray's to report.
    with contextlib.suppress(OSError):
        if wanted and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, beside = tempfile.mkstemp(dir=file.parent)
            try:
                with os.fdopen(descriptor, "w") as token:
                    token.write(secrets.token_hex(32))
                # Unlike a rename, it leaves alone what another process made meanwhile.
                os.link(beside, file)
            finally:
                os.remove(beside)
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def worker_environment() -> dict[str, str]:
    """Environment variables for workers on this machine: they import our packages, and send no usage statistics."""
    path = os.pathsep.join(
        dict.fromkeys([str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    )
    return {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def _join(address: str) -> str:
    _require_reachable(address)
    # A submitted job has brought its working_dir; a driver started by hand uploads ours (less what .rayignore names).
    runtime_env: dict[str, Any] | None = (
        None
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        else {"working_dir": str(REPOSITORY), "worker_process_setup_hook": SETUP_HOOK}
    )
    try:
        context = ray.init(address=address, logging_level="WARNING", runtime_env=runtime_env)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Unreachable(f"RAY_ADDRESS={address}: Ray could not join this cluster ({reason}); {_REMEDY}") from error
    return str(context.address_info["webui_url"] or "")


_REMEDY = (
    "set it to HOST:PORT of the head (port 6379 by default) as seen from here, with the cluster's token "
    "(RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH), or unset RAY_ADDRESS to run on this machine"
)


def _require_reachable(address: str) -> None:
    """Fail within seconds and with one sentence; `auto` is left to Ray, which knows where it wrote the address."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        raise Unreachable(
            f"RAY_ADDRESS={address} is no HOST:PORT (http:// is for `ray job submit --address`, "
            f"and ray:// is not supported); {_REMEDY}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise Unreachable(f"RAY_ADDRESS={address}: nothing answers there ({error}); {_REMEDY}") from None


def _quiet() -> None:
    """Leave the terminal to our own progress lines; Ray's go on to its log files."""
    import ray.data  # with pandas: a third of a second, which a command that starts nothing does without

    # It warns that its own bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def _described(is_local: bool, dashboard: str = "") -> ConnectedCluster:
    resources = ray.cluster_resources()
    return ConnectedCluster(
        address=ray.get_runtime_context().gcs_address,
        num_cpus=resources.get("CPU", 0.0),
        num_gpus=resources.get("GPU", 0.0),
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        is_local=is_local,
        dashboard=dashboard,
    )
