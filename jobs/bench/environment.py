"""An environment of its own for the program that is measured against: made once, with pip, and called as a program."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from data.errors import UserError
from jobs.runner.stage import log

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PIP = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet")


class NoEnvironment(UserError):
    """The environment could not be installed."""


def environment(folder: Path, requirement: str) -> Path:
    """The Python of an environment in `folder` that has `requirement` and our torch; made if it is not there.

    Raises NoEnvironment with pip's last lines.
    """
    python, done = folder / "bin" / "python", folder / "installed.txt"
    # The same kernels on both sides: what is compared is what is done with them.
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    required = f"{torch} {requirement}"
    if done.exists() and done.read_text() == required:
        return python
    log(f"installing {required} into {folder} (minutes)")
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [str(python), *PIP, torch, requirement]):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            last = "\n".join((ended.stderr or ended.stdout).splitlines()[-5:])
            raise NoEnvironment(f"{requirement} could not be installed into {folder}:\n{last}")
    done.write_text(required)
    return python


def version(python: Path, package: str) -> str:
    """Of a package in that Python's environment."""
    script = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    return subprocess.run(
        [str(python), "-c", script, package], capture_output=True, text=True, check=True
    ).stdout.strip()


def call(python: Path, script: Path, *arguments: str) -> None:
    """Run a script by that Python on one thread; raises RuntimeError with its last lines if it fails."""
    environ = os.environ | ONE_THREAD
    ended = subprocess.run(
        [str(python), str(script), *arguments], capture_output=True, text=True, check=False, env=environ
    )
    if ended.returncode:
        last = "\n".join((ended.stderr or ended.stdout).splitlines()[-15:])
        raise RuntimeError(f"{script.name} failed:\n{last}")
