"""The machine, in words, and where a command of ours runs on it: shared by `jobs.gpu_smoke` and `jobs.gpu_bench`."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from actors.kernels.machine import gpu_names, num_gpus
from cluster.connect import connect
from data.errors import UserError
from jobs.bench.report import machine
from jobs.gpu_checks.checks import Check, CheckFailed
from jobs.gpu_checks.target import Target, target
from jobs.runner.stage import log

OBJECT_STORE_BYTES = 512 * 2**20
RAY_LIMIT_S = 300.0
NO_RAY = "Ray has not started"


def parser(program: str, about: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="gpu: all of this machine; cpu: with far smaller models"
    )
    return found


def chosen_target(program: str, device: str) -> Target:
    """The device to check; exits with one sentence if it is not there."""
    try:
        if os.environ.get("RAY_ADDRESS", "local") != "local":
            raise UserError("RAY_ADDRESS names a cluster, but this checks the machine that it runs on: unset it")
        return target("cpu" if device == "cpu" else "gpu", num_gpus() if device == "gpu" else 0)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def described(chosen: Target) -> str:
    """The GPUs, if they are checked, then what every bench says of a machine."""
    return "; ".join([*(gpu_names() if chosen.on_gpu else []), machine()])


def ray_check(chosen: Target, stack: contextlib.ExitStack) -> Check:
    """A check that starts Ray, which stays until `stack` is closed."""

    def start() -> str:
        cluster = stack.enter_context(connect(chosen.num_cpus, OBJECT_STORE_BYTES))
        if chosen.on_gpu and cluster.num_gpus < chosen.num_gpus:
            raise CheckFailed(f"torch sees {chosen.num_gpus} GPUs, Ray {cluster.num_gpus:g}")
        return str(cluster)

    return Check("Ray", start, RAY_LIMIT_S)


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder for models and logs; it is kept if something in the block sets it aside by `keep`."""
    folder = Path(tempfile.mkdtemp(prefix=f"steerlm-{name}-"))
    try:
        yield folder
    finally:
        if (folder / KEEP).exists():
            log(f"logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


KEEP = "failures.log"
"""A scratch folder that has it is kept."""
