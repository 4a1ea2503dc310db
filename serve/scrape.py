"""The endpoint's metrics as Prometheus finds and reads them: addresses of Ray's agents, and what these export of ours.

Ray itself lists its agents in a file, but only where its dashboard runs, which `python -m serve` does not start. Knows
no metric.
"""

import contextlib
import http.client
import json
import logging
import os
import re
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
import ray._private.worker

from serve.protocol import ProtocolError

logger = logging.getLogger("ray.serve")

OURS = "ray_steerlm_"
"""How every metric of ours begins, once Ray exports it."""
FAMILY = re.compile(r"# (?:HELP|TYPE) (\S+)")
TARGETS_FILE = "steerlm_endpoint_{port}.json"
"""In Ray's folder; cluster/monitoring/prometheus.yaml reads all of them."""


def agents() -> list[str]:
    """HOST:PORT of the metrics of every node that lives."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]
    hosts = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts]


def endpoint_metrics(timeout_s: float) -> str:
    """Metrics of ours from all nodes. A node that does not answer in time is logged, and missing; if none does, raises
    ProtocolError (503)."""
    return exported(agents(), timeout_s)


def exported(addresses: Sequence[str], timeout_s: float) -> str:
    """The same of the agents at `addresses`."""
    with ThreadPoolExecutor(max(1, len(addresses))) as threads:
        found = list(threads.map(lambda address: _exported(address, timeout_s), addresses))
    if missing := [address for address, text in zip(addresses, found, strict=True) if text is None]:
        logger.warning("no metrics from %s within %g s", ", ".join(missing), timeout_s)
    if len(missing) == len(addresses):
        message = f"none of Ray's {len(addresses)} metrics agents answers: see the log"
        raise ProtocolError(message, code="no_metrics", status=503)
    return merged(text for text in found if text is not None)


def merged(texts: Iterable[str], prefix: str = OURS) -> str:
    """One exposition of several, with the families that begin with `prefix`: each once, as the format wants it."""
    about: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        family, seen = "", set(samples)
        for line in text.splitlines():
            if found := FAMILY.match(line):
                family = found[1]
                if family.startswith(prefix) and family not in seen:
                    about.setdefault(family, []).append(line)
            elif family.startswith(prefix) and line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    return "".join(f"{line}\n" for family in samples for line in (*about.get(family, ()), *samples[family]))


def targets_file(port: int) -> Path | None:
    """Where the targets of the endpoint at `port` are listed; None if Ray lists them itself."""
    node = ray._private.worker._global_node
    assert node is not None, "Ray is connected"
    return None if node.webui_url else Path(node.get_temp_dir_path()) / TARGETS_FILE.format(port=port)


def announce(file: Path, addresses: Sequence[str]) -> None:
    """Write the list of targets, for a Prometheus on this machine."""
    beside = file.with_suffix(f".{os.getpid()}")
    # The label is the one of Ray's own list.
    beside.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": list(addresses)}]), encoding="utf-8")
    beside.replace(file)


def _exported(address: str, timeout_s: float) -> str | None:
    """None if it does not answer."""
    with (
        contextlib.suppress(OSError, http.client.HTTPException, UnicodeDecodeError),
        urllib.request.urlopen(f"http://{address}/metrics", timeout=timeout_s) as answer,
    ):
        return str(answer.read().decode())
    return None
