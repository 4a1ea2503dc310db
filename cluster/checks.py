"""Is this cluster fit for what a preset needs? A finding is a line: what was checked, what was found, how to fix it.

`examined` checks the connected cluster; `findings` judges the reports of its nodes. Knows no job.
"""

import contextlib
import secrets
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fsspec

from cluster.errors import ClusterError
from cluster.needs import Needs
from cluster.nodes import (
    NodeProbe,
    Report,
    ask_every_node,
    failure,
    last_line,
    probe_folder,
    require_readable,
    write_probe,
)
from cluster.preflight import ClusterNode, Demand, WouldHang, judged, may_grow, nodes_now

MAX_SKEW_S = 5.0
"""S3 refuses signatures that are 15 minutes off; log lines of several nodes are hard to read from seconds on."""
LITTLE_SHARED_MEMORY = 0.3
"""Ray's object store wants 30 % of a node's memory there; the rest goes to the disk, which is ten times slower."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    what: str
    good: bool
    found: str
    remedy: str = ""
    stops: bool = True
    """Would a job fail or hang on it? What only slows or confuses it does not keep it from starting."""


class Unfit(ClusterError):
    """The job would fail or hang here."""


def examined(needs: Needs, dashboard: str = "") -> list[Finding]:
    """All checks, on every node of the connected cluster. `dashboard`: its host and port, "" = not checked."""
    probe = NodeProbe(needs.storage, needs.models, secrets.token_hex(8))
    with _probe_file(probe) as unwritable:
        reports = ask_every_node(replace(probe, shared=not unwritable))
    found = findings(reports, needs, nodes_now(), may_grow())
    if unwritable:
        remedy = "set storage to a URI this machine may write to, or give it the rights"
        found.append(Finding("storage from here", False, unwritable, remedy))
    found += [_read_here(setting, uri) for setting, uri in needs.reads.items()]
    return [*found, token_mode(dashboard)] if dashboard else found


def require_fit(needs: Needs) -> list[str]:
    """The findings that stop nothing, a sentence each. Raises Unfit with what would stop the job and how to fix it."""
    bad = [f for f in examined(needs) if not f.good]
    if any(f.stops for f in bad):
        wrong = "; ".join(f"{f.what}: {f.found}: {f.remedy}" for f in bad if f.stops)
        raise Unfit(f"{wrong} (`python -m cluster.doctor` with the same words shows all checks)")
    return [f"{f.what}: {f.found}: {f.remedy}" for f in bad]


def findings(reports: Sequence[Report], needs: Needs, nodes: Sequence[ClusterNode], growing: bool) -> list[Finding]:
    """In the order in which to fix them."""
    heard = [r for r in reports if "answer" not in r.errors]
    ports = "open all ports between the nodes of the cluster (a security group that admits itself)"
    write = "give every node the right to write there, or set storage to where it has it"
    found = [
        _answers(reports, heard),
        *_versions(heard),
        _clock(heard),
        _shared_memory(heard),
        *_gpus(heard),
        _tried(heard, "port", "ports between nodes", ports),
        _tried(heard, "storage", f"storage {needs.storage}", write),
    ]
    for setting, model in needs.models.items():
        place = f"download it to storage that every node reads and set {setting} to it, or set HF_TOKEN on every node"
        found.append(_tried(heard, setting, f"{setting}={model}", place))
    return [*found, *(_demand(demand, nodes, growing) for demand in needs.demands)]


def _answers(reports: Sequence[Report], heard: Sequence[Report]) -> Finding:
    silent = {r.node: r.errors["answer"] for r in reports if r not in heard}
    found = f"{len(heard)} of {len(reports)} answer" + _each(silent)
    return Finding("nodes", not silent, found, "`ray status`; end the nodes that hang, or restart Ray there")


def _versions(reports: Sequence[Report]) -> list[Finding]:
    listed = []
    lock = "install the lock on every node (one image): pip install -r requirements-cuda.lock, or -cpu.lock, has {}"
    for name in reports[0].versions if reports else ():
        by_version = defaultdict(list)
        for report in reports:
            by_version[report.versions[name]].append(report.node)
        same = len(by_version) == 1
        found = "; ".join(version if same else f"{version} on {', '.join(on)}" for version, on in by_version.items())
        listed.append(Finding(name, same and "not installed" not in by_version, found, lock.format(name)))
    return listed


def _clock(reports: Sequence[Report]) -> Finding:
    # A node answers at some time between question and answer; a larger difference to the others is its clock's.
    skew = {
        r.node: max(0.0, abs(r.clock - reports[0].clock) - max(r.round_trip_s, reports[0].round_trip_s))
        for r in reports
    }
    off = {node: f"{seconds:.0f} s from {reports[0].node}" for node, seconds in skew.items() if seconds > MAX_SKEW_S}
    found = f"within {max(skew.values(), default=0):.1f} s" + _each(off)
    return Finding("clocks", not off, found, "run chrony or systemd-timesyncd on every node", stops=False)


def _shared_memory(reports: Sequence[Report]) -> Finding:
    wrong = {}
    for r in reports:
        size, store = r.shared_memory_bytes, r.object_store_bytes
        if size < store:
            wrong[r.node] = f"{_gib(size)} for an object store of {_gib(store)}"
        elif r.shared_memory_free < LITTLE_SHARED_MEMORY * store:
            wrong[r.node] = f"{_gib(r.shared_memory_free)} of {_gib(size)} free"
    found = _each(wrong)[2:] or "room for the object store on every node"
    remedy = (
        "start containers with a larger --shm-size (Kubernetes: a larger emptyDir of medium Memory at /dev/shm), "
        "or remove what fills /dev/shm"
    )
    return Finding("shared memory", not wrong, found, remedy, stops=False)


def _gpus(reports: Sequence[Report]) -> list[Finding]:
    counted = [r for r in reports if r.gpus_seen is not None]
    wrong = {
        r.node: f"Ray counts {r.gpus_counted:g}, the driver shows {r.gpus_seen}"
        for r in counted
        if (r.gpus_seen or 0) < r.gpus_counted
    }
    found = f"{sum(r.gpus_counted for r in counted):g} on {len(counted)} nodes" + _each(wrong)
    remedy = "let Ray count GPUs itself, and start containers with --gpus all"
    return [Finding("GPUs", not wrong, found, remedy)] if counted else []


def _tried(reports: Sequence[Report], key: str, what: str, remedy: str) -> Finding:
    failed = {
        r.node: error
        for r in reports
        for tried, error in r.errors.items()
        if tried == key or tried.startswith(key + " ")
    }
    return Finding(what, not failed, _each(failed)[2:] or f"from all {len(reports)} nodes", remedy)


def _read_here(setting: str, uri: str) -> Finding:
    """The driver alone reads rows and texts."""
    why = failure(partial(require_readable, uri))
    remedy = f"set {setting} to what exists on the node that runs the driver, or give it the right to read it"
    return Finding(setting, not why, why or f"{uri} is there", remedy)


def _demand(demand: Demand, nodes: Sequence[ClusterNode], growing: bool) -> Finding:
    try:
        return Finding("resources", True, judged(demand, nodes, growing))
    except WouldHang as problem:
        found, _, remedy = str(problem).rpartition("; ")
        return Finding("resources", False, found, remedy)


def token_mode(dashboard: str) -> Finding:
    """Does the cluster refuse strangers? Asked as a stranger."""
    remedy = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node before `ray start` (SECURITY.md)"
    url = f"http://{dashboard}"
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=10) as answer:
            found = f"{url} answers {answer.status} to anyone: whoever reaches it can run code on every node"
            return Finding("token", False, found, remedy)
    except urllib.error.HTTPError as refused:
        return Finding("token", refused.code in (401, 403), f"{url} answers {refused.code} to strangers", remedy)
    except OSError as error:
        return Finding("token", True, f"no dashboard answers at {dashboard} ({error})")


@contextlib.contextmanager
def _probe_file(probe: NodeProbe) -> Any:
    """A file of ours in the storage while the nodes look for it; yields why it could not be written, "" if it could."""
    if not probe.storage:
        yield ""
        return
    folder = probe_folder(probe.storage)
    try:
        fs, path = fsspec.core.url_to_fs(folder)
        write_probe(fs, path, f"{path}/{probe.token}")
    except Exception as error:  # every reason is worth reporting
        yield last_line(error)
        return
    try:
        yield ""
    finally:
        fs.rm(f"{path}/{probe.token}")
        with contextlib.suppress(OSError):
            fs.rmdir(path)


def _each(by_node: Mapping[str, str]) -> str:
    return "".join(f"; {node}: {found}" for node, found in by_node.items())


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
