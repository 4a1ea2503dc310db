"""Peak resident memory, of this process and of annotation's actors, as Linux counts it. Knows nothing of what uses it."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.annotator import Annotator

RESET = "5"
"""proc(5), clear_refs: "reset the peak resident set size to the current one"."""


def reset_own_peak() -> None:
    Path("/proc/self/clear_refs").write_text(RESET)


def own_peak_bytes() -> int:
    """Largest resident set of this process since it started, or since `reset_own_peak`; shared memory it has touched counts."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class PeakRecorded(Annotator):
    """An Annotator that leaves its process's peak memory, in bytes, in a file of the folder `peaks` after every batch."""

    def __init__(self, peaks: str, **arguments: Any):
        super().__init__(**arguments)
        self._file = Path(peaks) / str(os.getpid())

    def __call__(self, batch: pa.Table) -> pa.Table:
        result = super().__call__(batch)
        self._file.write_text(str(own_peak_bytes()))
        return result
