"""Requests to save a checkpoint or to stop: the driver leaves a mark, Ray announces preemptions. Knows no loop."""

import contextlib
import threading
import time

import ray.train

from actors.training.collectives import summed
from data.storage import Storage

STOP = "stop"
"""The mark, in the folder of the training."""
MARK_EVERY_S = 1.0
"""How often the first worker looks for the mark."""
PREEMPTION_EVERY_S = 5.0
"""How often workers query Ray: each query is a barrier over all of them."""


class Preemption:
    """The first worker looks; all workers get the same answer."""

    def __init__(self, output: Storage, rank: int):
        self._mark, self._rank = output / STOP, rank
        self._marked = threading.Event()
        self._queried = time.monotonic()
        self._saved_for_preemption = False
        if rank == 0:
            threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def requested(self) -> tuple[bool, bool]:
        """(Save a checkpoint now? Stop then?) Every worker must call this after every step."""
        due = self._rank == 0 and time.monotonic() - self._queried > PREEMPTION_EVERY_S
        ends, queries = (bool(v) for v in summed(float(self._rank == 0 and self._marked.is_set()), float(due)))
        announced = False
        if queries:
            self._queried = time.monotonic()
            announced = ray.train.get_preemption_info() is not None and not self._saved_for_preemption
            self._saved_for_preemption |= announced
        return ends or announced, ends

    def _watch(self) -> None:
        while not self._marked.is_set():
            with contextlib.suppress(OSError):  # a storage that fails now may answer in a second
                if self._mark.exists():
                    self._marked.set()
            time.sleep(MARK_EVERY_S)
