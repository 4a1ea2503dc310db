"""How often a predictor's parts have died on this machine: what starts their processes again does so without end.

Counted in a file that the processes of one job have in common. Knows no process.
"""

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass

import psutil
import ray

from data.errors import UserError
from data.printable import printable

MOST = 8
"""Deaths on a machine that a job survives; one by one they may be chance, so many have a reason."""


@dataclass(frozen=True)
class PartDeaths:
    """Of one predictor in one job."""

    file: str

    @classmethod
    def of(cls, model: str) -> "PartDeaths":
        """Processes of one job on one machine have the same parent: Ray's own, or a shell."""
        job = ray.get_runtime_context().get_job_id() if ray.is_initialized() else ""
        parent, since = os.getppid(), 0.0
        with contextlib.suppress(psutil.Error):  # outside of this container
            since = psutil.Process(parent).create_time()
        key = hashlib.sha256(f"{job} {parent} {since} {model}".encode()).hexdigest()[:16]
        return cls(os.path.join(tempfile.gettempdir(), f"steerlm-deaths-{os.getuid()}-{key}"))

    def note(self, sentence: str) -> None:
        """Count one."""
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            file.write(f"{printable(sentence)}\n")

    def require_few(self) -> None:
        """Raises UserError after too many."""
        try:
            with open(self.file, encoding="utf-8") as file:
                found = file.read().splitlines()
        except FileNotFoundError:
            return
        if len(found) >= MOST:
            raise UserError(
                f"parts of the predictor died {len(found)} times on a machine, so it is not started there again; the "
                f"last time {found[-1]}; if it was for want of memory, lower annotate.pack_tokens"
            )
