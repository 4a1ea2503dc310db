"""Write a file of weights while its values arrive, in any order, a few of them in memory at a time. Knows no model."""

import queue
import threading
from collections.abc import Callable, Sequence

import torch

from actors.training.shard_layout import ShardLayout
from data.storage import Storage

WAITING = 1
"""Batches of values that may wait while one is written."""

Values = tuple[str, int, torch.Tensor]
"""Tensor, first element, flat values on the CPU."""
_ABORT: list[Values] = []


class ShardWriter:
    """One file, written by a thread. It appears whole or not at all, once `close` has been called."""

    def __init__(self, target: Storage, layout: ShardLayout, allowed: Callable[[], None]):
        """`allowed` raises if this process must not publish anything more."""
        self._target, self._layout, self._allowed = target, layout, allowed
        self._queue: queue.Queue[Sequence[Values]] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._ended = self._aborted = False
        self._thread = threading.Thread(target=self._run, name="export", daemon=True)
        self._thread.start()

    def add(self, batch: Sequence[Values]) -> None:
        """Waits while another batch waits. After an error batches are dropped, and `close` says so."""
        if batch:
            self._queue.put(batch)

    def close(self) -> Exception | None:
        """Returns when the file is whole, with None, or why it cannot be."""
        self._queue.put(())
        self._thread.join()
        return self._error

    def abort(self) -> None:
        """Leave nothing behind."""
        self._queue.put(_ABORT)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # for `close`, in the thread that waits
            self._error = error
            while not self._ended:
                self._next()

    def _next(self) -> Sequence[Values]:
        """The next batch; nothing = there is none."""
        batch = self._queue.get()
        self._ended, self._aborted = not batch, batch is _ABORT
        return batch

    def _write(self) -> None:
        starts, written = self._layout.starts(), 0
        with self._target.written() as path:
            with open(path, "wb") as file:
                file.write(self._layout.header())
                while batch := self._next():
                    for name, first, values_N in batch:
                        file.seek(starts[name] + first * values_N.itemsize)
                        written += file.write(values_N.contiguous().view(torch.uint8).numpy().data)
            if self._aborted:
                raise InterruptedError
            assert written == self._layout.data_bytes, f"{written} bytes of {self._layout.data_bytes}"
            self._allowed()
