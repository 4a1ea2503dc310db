"""What happens beside the steps: requests to save or to stop, and the time of the next checkpoint. Knows no loop.

The driver leaves a mark to stop, Ray announces preemptions, and the first worker's clock says when a checkpoint is due.
"""

import contextlib
import threading
import time
from dataclasses import dataclass

import ray.train

from actors.training.collectives import summed
from data.storage import Storage

STOP = "stop"
"""The mark, in the folder of the training."""
MARK_EVERY_S = 1.0
"""How often the first worker looks for the mark."""
PREEMPTION_EVERY_S = 5.0
"""How often workers query Ray: each query is a barrier over all of them."""


@dataclass(frozen=True)
class Requests:
    """After a step, the same on all workers."""

    saves: bool
    """Write a checkpoint now, and wait until it is complete."""
    ends: bool
    """Then stop."""
    due: bool
    """It is time for a checkpoint."""
    sums: tuple[float, ...]
    """The workers' own numbers, summed."""


class Preemption:
    """The first worker looks; all workers get the same answer."""

    def __init__(self, output: Storage, rank: int, checkpoint_every_s: float = 0.0):
        """`checkpoint_every_s`: seconds after which a checkpoint is due; 0 = never."""
        self._mark, self._rank, self._every_s = output / STOP, rank, checkpoint_every_s
        self._marked = threading.Event()
        self._queried = self._saved = time.monotonic()
        self._saved_for_preemption = False
        if rank == 0:
            threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def requested(self, *numbers: float) -> Requests:
        """Every worker must call this after every step; one exchange carries the answers and the sums of `numbers`."""
        now, first = time.monotonic(), self._rank == 0
        ends, queries, due, *sums = summed(
            float(first and self._marked.is_set()),
            float(first and now - self._queried > PREEMPTION_EVERY_S),
            float(first and 0 < self._every_s <= now - self._saved),
            *numbers,
        )
        announced = False
        if queries:
            self._queried = now
            announced = ray.train.get_preemption_info() is not None and not self._saved_for_preemption
            self._saved_for_preemption |= announced
        return Requests(bool(ends) or announced, bool(ends), bool(due), tuple(sums))

    def saved(self) -> None:
        """A checkpoint is written: the next one is due later."""
        self._saved = time.monotonic()

    def _watch(self) -> None:
        while not self._marked.is_set():
            with contextlib.suppress(Exception):  # a storage that fails now, whatever its error, may answer in a second
                if self._mark.exists():
                    self._marked.set()
            time.sleep(MARK_EVERY_S)
