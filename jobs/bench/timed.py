"""When annotation's actors worked: from the first row that reached one to the last one done, without the start of processes. Knows nothing of what uses it."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.annotator import Annotator


class Timed(Annotator):
    """An Annotator that leaves in a file of the folder `times` when its first batch came and when its last was done, in seconds since 1970."""

    def __init__(self, times: str, **arguments: Any):
        super().__init__(**arguments)
        self._file, self._first = Path(times) / str(os.getpid()), 0.0

    def __call__(self, batch: pa.Table) -> pa.Table:
        self._first = self._first or time.time()
        result = super().__call__(batch)
        self._file.write_text(f"{self._first} {time.time()}")
        return result


def working_seconds(times: Path) -> float:
    """From the first start to the last end, over all actors."""
    spans = [tuple(map(float, path.read_text().split())) for path in times.iterdir()]
    return max(end for _, end in spans) - min(start for start, _ in spans)
