"""Every node's report: versions, clock, shared memory, and what it can read and write. Knows no job, judges nothing.

The same function runs on each node, pinned to it, with no CPU requested: busy nodes and a head without CPUs answer too.
"""

import importlib.metadata
import os
import platform
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fsspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "pyarrow", "s3fs")
SHARED_MEMORY, AMD_NODES = "/dev/shm", "/sys/class/kfd/kfd/topology/nodes"
ANSWER_TIMEOUT_S = 120
CONNECT_TIMEOUT_S = 5
PROBE = ".steerlm-doctor"
"""A folder below the storage, for files that live for seconds."""
PROBE_TRIES = 10


@dataclass(frozen=True)
class NodeProbe:
    """The checks that a node runs."""

    storage: str
    """URI of the folder that jobs write to, "" = none."""
    models: Mapping[str, str]
    """Setting -> Hugging Face model: hub name, folder or URI."""
    token: str
    """Name of the probe files of this examination."""
    shared: bool = True
    """Is there a file of that name in the storage, for the nodes to find?"""


@dataclass
class Report:
    """What a node found. Errors are sentences; no error is no entry."""

    node: str
    """Its address."""
    versions: dict[str, str] = field(default_factory=dict)
    clock: float = 0.0
    """Seconds since 1970 by its own clock, as it answered."""
    round_trip_s: float = 0.0
    shared_memory_bytes: int = 0
    shared_memory_free: int = 0
    object_store_bytes: int = 0
    gpus_counted: float = 0.0
    gpus_seen: int | None = None
    """GPUs that the driver shows; None where Ray counts none."""
    token_mode: bool = False
    errors: dict[str, str] = field(default_factory=dict)
    """What was tried -> why it failed."""


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def ask_every_node(probe: NodeProbe) -> list[Report]:
    """A report of each node that is alive; one silent for two minutes has an error `answer`.

    A node that is lost meanwhile is none of the cluster any more: a job may start right after its loss.
    """
    nodes = alive_nodes()
    addresses = {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes}
    examine_remotely = ray.remote(num_cpus=0, max_retries=0)(examine)
    sent = time.time()
    pending = {
        examine_remotely.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            probe,
            node["NodeManagerAddress"],
            node["Resources"],
            [address for other, address in addresses.items() if other != node["NodeID"]],
        ): node
        for node in nodes
    }
    ray.wait(list(pending), num_returns=len(pending), timeout=ANSWER_TIMEOUT_S)
    reports = {node["NodeID"]: _received(ref, node, sent) for ref, node in pending.items()}
    return of_alive(reports, addresses, {node["NodeID"] for node in alive_nodes()})


def of_alive(
    reports: Mapping[str, Report], addresses: Mapping[str, tuple[str, int]], alive: Collection[str]
) -> list[Report]:
    """The reports of the nodes that are `alive`, without what they found of the others. Keys: ids of nodes."""
    lost = {_port(*address) for node, address in addresses.items() if node not in alive}
    found = [report for node, report in reports.items() if node in alive]
    for report in found:
        report.errors = {what: why for what, why in report.errors.items() if what not in lost}
    return found


def _port(host: str, port: int) -> str:
    return f"port {host}:{port}"


def _received(ref: Any, node: Mapping[str, Any], sent: float) -> Report:
    try:
        report: Report = ray.get(ref, timeout=0)
    except Exception as error:  # whatever keeps a node from answering is what the examination is about
        timed_out = isinstance(error, ray.exceptions.GetTimeoutError)
        reason = f"no answer within {ANSWER_TIMEOUT_S} s" if timed_out else last_line(error)
        return Report(node["NodeManagerAddress"], errors={"answer": reason})
    report.round_trip_s = time.time() - sent
    return report


def examine(
    probe: NodeProbe, address: str, resources: Mapping[str, float], others: Sequence[tuple[str, int]]
) -> Report:
    """Runs on the node."""
    memory = shutil.disk_usage(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None
    report = Report(
        address,
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        shared_memory_bytes=memory.total if memory else 0,
        shared_memory_free=memory.free if memory else 0,
        object_store_bytes=int(resources.get("object_store_memory", 0)),
        gpus_counted=resources.get("GPU", 0.0),
        gpus_seen=_gpus() if resources.get("GPU") else None,
        token_mode=os.environ.get("RAY_AUTH_MODE") == "token",
    )
    attempts: dict[str, Callable[[], object]] = {
        "storage": partial(_write_and_look, probe, address),
        **{setting: partial(_model, model) for setting, model in probe.models.items()},
        **{_port(host, port): partial(_reach, host, port) for host, port in others},
    }
    report.errors |= {what: why for what, attempt in attempts.items() if (why := failure(attempt))}
    report.clock = time.time()
    return report


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> int:
    """Devices of the NVIDIA or AMD driver; Ray counts what it was started with."""
    nvidia = sum(name.startswith("nvidia") and name[6:].isdigit() for name in os.listdir("/dev"))
    return nvidia or (len(os.listdir(AMD_NODES)) - 1 if os.path.isdir(AMD_NODES) else 0)


def last_line(error: Exception) -> str:
    """The last line of an error's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def failure(attempt: Callable[[], object]) -> str:
    """Why it failed, in a line; "" if it did not."""
    try:
        attempt()
    except Exception as error:  # every reason is worth reporting
        return last_line(error)
    return ""


def _reach(host: str, port: int) -> None:
    socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()


def _filesystem(uri: str) -> tuple[Any, str]:
    # A fresh one: a listing cache would remember what other nodes have since written.
    options = {"use_listings_cache": False} if uri.startswith("s3://") else {}
    found: tuple[Any, str] = fsspec.core.url_to_fs(uri, **options)
    return found


def probe_folder(storage: str) -> str:
    return f"{storage.rstrip('/')}/{PROBE}"


def write_probe(fs: Any, folder: str, file: str) -> None:
    """Write a small file into the folder of probes. Raises OSError if that cannot be done."""
    for left in reversed(range(PROBE_TRIES)):
        fs.makedirs(folder, exist_ok=True)
        try:
            fs.pipe_file(file, b"doctor")
            return
        except FileNotFoundError:  # another job has ended its examination just now, and removed the empty folder
            if not left:
                raise


def _write_and_look(probe: NodeProbe, address: str) -> None:
    """Write a file of this node's, and look for the driver's: is the storage one and the same?"""
    if not probe.storage:
        return
    fs, folder = _filesystem(probe_folder(probe.storage))
    mine = f"{folder}/{probe.token}-{address}-{secrets.token_hex(4)}"  # nodes of one host share its address
    write_probe(fs, folder, mine)
    try:
        if probe.shared and not fs.exists(f"{folder}/{probe.token}"):
            raise OSError(
                "another folder than on the node that asks: use a URI that all nodes share, such as s3://bucket/prefix"
            )
    finally:
        fs.rm(mine)


def require_readable(uri: str) -> None:
    """Raise FileNotFoundError, or the filesystem's own error, if `uri` is no file, folder or glob with matches."""
    fs, path = _filesystem(uri)
    if not (fs.glob(path) if any(c in path for c in "*?[") else fs.exists(path)):
        raise FileNotFoundError(f"nothing at {uri}")


def _model(model: str) -> None:
    if "://" in model or os.path.isabs(model) or os.path.isdir(model):
        require_readable(f"{model.rstrip('/')}/config.json")
        return
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise FileNotFoundError(f"{model} is not in this node's cache, and HF_HUB_OFFLINE=1 forbids the hub")
    try:
        # A gated model's description is open to all; only a file of it tells who may read it.
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=CONNECT_TIMEOUT_S)
    except GatedRepoError:
        token = "the HF_TOKEN of this node has no access" if get_token() else "this node has no HF_TOKEN"
        raise PermissionError(
            f"{model} is gated and {token}; ask for access on the model's page, and set HF_TOKEN on every node"
        ) from None
