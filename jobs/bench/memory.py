"""Peak memory of this process and of annotation's actors, as Linux counts it. Knows nothing of what uses it.

A process's own memory (anonymous pages and files) and its shared memory are counted apart. Linux charges every page
of Ray's object store to each process that ever touched it, in the end the whole store to each of them.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.scoring.annotator import Annotator

SAMPLED_EVERY_S = 0.02
RESET = "5"
"""proc(5), clear_refs: "reset the peak resident set size to the current one"."""


@dataclass(frozen=True)
class ResidentBytes:
    """Resident bytes of this process."""

    own: int
    shared: int


def memory() -> ResidentBytes:
    """Now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    anonymous, files, shared = (int(found[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return ResidentBytes(anonymous + files, shared)


class Peak:
    """The largest `memory().own` and `.shared` since this object was made, sampled by a thread (0.1 % of a core)."""

    def __init__(self) -> None:
        self._own = self._shared = 0
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._look()
            time.sleep(SAMPLED_EVERY_S)

    def _look(self) -> None:
        now = memory()
        self._own, self._shared = max(self._own, now.own), max(self._shared, now.shared)

    def so_far(self) -> ResidentBytes:
        self._look()
        return ResidentBytes(self._own, self._shared)

    def end(self) -> ResidentBytes:
        self._over.set()
        return self.so_far()


def reset_own_peak() -> None:
    Path("/proc/self/clear_refs").write_text(RESET)


def own_peak_bytes() -> int:
    """Largest resident set of this process since its start or `reset_own_peak`, with the shared memory it touched."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class PeakRecorded(Annotator):
    """An Annotator that writes its process's peak of own memory, in bytes, to a file in `peaks` after every batch."""

    def __init__(self, peaks: str, **arguments: Any):
        self._peak = Peak()
        super().__init__(**arguments)
        self._file = Path(peaks) / str(os.getpid())

    def __call__(self, batch: pa.Table) -> pa.Table:
        result = super().__call__(batch)
        self._file.write_text(str(self._peak.so_far().own))
        return result
