"""The processes of an endpoint's replicas, to be killed, and waiting for others."""

import contextlib
import time
from collections.abc import Callable

import psutil

from serve.deploy import APPLICATION, deployment_name

MODEL = "tiny"


def replicas(deployment: str = deployment_name(MODEL)) -> list[psutil.Process]:
    """Of this test's own Ray: on a machine that others use too, theirs have the same names."""
    name, found = f"ServeReplica:{APPLICATION}:{deployment}", []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for(what: Callable[[], object], limit_s: float) -> float:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < limit_s, "it did not come back in time"
        time.sleep(0.2)
    return time.monotonic() - started
