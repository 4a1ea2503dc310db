"""Has somebody asked a training to keep what it has, or to end? The driver leaves a mark, Ray announces that a node will go. Knows no loop."""

import contextlib
import threading
import time

import ray.train

from actors.training.deepspeed_engine import summed
from data.storage import Storage

STOP = "stop"
"""The mark, in the folder of the training."""
LOOK_EVERY_S = 1.0
PREEMPTION_EVERY_S = 5.0
"""Asking Ray is a barrier over all workers, so it is not asked at every step."""


class Preemption:
    """The first worker looks; all of them hear the same answer."""

    def __init__(self, output: Storage, rank: int):
        self._mark, self._rank = output / STOP, rank
        self._marked = threading.Event()
        self._looked = time.monotonic()
        self._saved_for_preemption = False
        if rank == 0:
            threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def asked(self) -> tuple[bool, bool]:
        """(Keep a checkpoint now? End then?) Every worker must ask after every step."""
        due = self._rank == 0 and time.monotonic() - self._looked > PREEMPTION_EVERY_S
        ends, looks = (bool(v) for v in summed(float(self._rank == 0 and self._marked.is_set()), float(due)))
        announced = False
        if looks:
            self._looked = time.monotonic()
            announced = ray.train.get_preemption_info() is not None and not self._saved_for_preemption
            self._saved_for_preemption |= announced
        return ends or announced, ends

    def _watch(self) -> None:
        while not self._marked.is_set():
            with contextlib.suppress(OSError):  # a storage that does not answer now may answer in a second
                if self._mark.exists():
                    self._marked.set()
            time.sleep(LOOK_EVERY_S)
