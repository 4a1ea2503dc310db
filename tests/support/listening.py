"""Who listens on which interface: the TCP sockets of a process and of all that it started, by the kind of process.

Knows nothing of Ray but the names of its processes.
"""

import ipaddress
from collections.abc import Iterable

import psutil

LOOPBACK, NODE, ALL = "loopback", "the node's address", "all interfaces"


def family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, str]]:
    """Pairs of a kind of process and an interface."""
    found = set()
    for process in processes:
        try:
            sockets = [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            found |= {(kind(process), interface(ip)) for ip in sockets}
        except psutil.NoSuchProcess:
            continue
    return found


def ports(processes: Iterable[psutil.Process]) -> set[int]:
    return {
        c.laddr.port
        for p in processes
        if p.is_running()
        for c in p.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }


def interface(ip: str) -> str:
    address = ipaddress.ip_address(ip)
    address = getattr(address, "ipv4_mapped", None) or address
    return LOOPBACK if address.is_loopback else ALL if address.is_unspecified else NODE


def kind(process: psutil.Process) -> str:
    """A process of Ray's own (`gcs_server`, `raylet`, an agent, ...), or one with our code: `driver`, `worker`."""
    words = process.cmdline()
    said = " ".join(words)
    for name in ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent", "ProxyActor"):
        if name in words[0] or name == process.name():
            return name
    for name in ("dashboard", "monitor"):
        if f"{name}.py" in said:
            return name
    return "worker" if words[0].startswith("ray::") else "driver"
