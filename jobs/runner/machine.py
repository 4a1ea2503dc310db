"""The machine that a command ran on, for its last line: a figure of time or speed means nothing without it."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def machine(cpuinfo: Path = CPUINFO) -> dict[str, object]:
    """Processor, its flags as `lscpu` lists them, and the cores that this process may use. Of the driver's machine."""
    found: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return {
        "processor": found.get("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": found.get("flags") or found.get("Features") or "",
    }
