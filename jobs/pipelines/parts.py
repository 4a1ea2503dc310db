"""What is done of a pass over rows, and what is left: pieces, and the parts that Ray tasks merge of them.

Memory is for each file and a byte for each shard. Knows no worker and no Ray Data.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from data.counters import Counters, added
from data.shard_list import ShardList
from data.shards import Input, Output, merge
from jobs.pipelines.tasks import user_errors_told

MERGE_CPUS = 0.25
MERGES_AT_ONCE = 64
"""Merges that are asked for at a time; the others wait as a number each."""
ASKED_EVERY_S = 0.5
"""How often the driver asks which merges have ended, not for each piece."""
Order = Callable[[ShardList], np.ndarray]
"""All shards -> their numbers, in the order in which they are wanted."""


class Parts:
    """Finished pieces and parts; a Ray task merges a part's pieces as soon as all are there."""

    def __init__(self, what: str, inputs: Sequence[Input], output: Output, batch_rows: int, order: Order | None):
        self._what, self._output = what, output
        output.sweep()
        self.shards = ShardList.of(inputs, batch_rows)
        self._sum = OrderedSum()
        done_S = np.zeros(len(self.shards), np.bool_)
        self._left_F = np.array([len(self.shards.of_file(file)) for file in range(len(inputs))], np.int64)
        self._unmerged = {i.part: file for file, i in enumerate(inputs)}
        for file, counters in output.each_finished(inputs):
            self._merged(file, counters)
            done_S[np.asarray(self.shards.of_file(file))] = True
        there = self.shards.numbers_of(output.pieces.names(".parquet"))
        there = there[~done_S[there]]
        done_S[there] = True
        np.subtract.at(self._left_F, np.searchsorted(self.shards.ends_F, there, "right"), 1)
        numbers = order(self.shards) if order else np.arange(len(self.shards))
        self.missing: np.ndarray = numbers[~done_S[numbers]]
        """The numbers of the shards to do, in order."""
        self.rows_before = self.shards.num_rows - int(self.shards.rows_of(self.missing).sum())
        # Of some an earlier run wrote all pieces.
        self._ready = deque(file for file in self._unmerged.values() if not self._left_F[file])
        self._merging: dict[Any, int] = {}
        self._asked = time.monotonic()
        self._merge = ray.remote(num_cpus=MERGE_CPUS, max_retries=-1)(merge)

    def piece_done(self, part: str) -> None:
        """One more piece of this part is there."""
        file = self._unmerged[part]
        self._left_F[file] -= 1
        if not self._left_F[file]:
            self._ready.append(file)
        now = time.monotonic()
        if now - self._asked >= ASKED_EVERY_S:
            self._asked = now
            self._collect(timeout_s=0)
        self._start_merges()

    def finish(self) -> Counters:
        """Wait for the last merges and remove leftover pieces; returns the sum of all parts' counters."""
        self._start_merges()
        while self._merging:
            self._collect(timeout_s=None)
            self._start_merges()
        assert not self._unmerged, f"every shard was done, but no merge was started for {sorted(self._unmerged)[:3]}"
        self._output.all_pieces.remove()
        return self._sum.total

    def _start_merges(self) -> None:
        while self._ready and len(self._merging) < MERGES_AT_ONCE:
            file = self._ready.popleft()
            pieces = [self.shards[number].piece for number in self.shards.of_file(file)]
            part = self.shards.parts[file].as_py()
            self._merging[self._merge.remote(part, pieces, self._output)] = file

    def _collect(self, timeout_s: float | None) -> None:
        """Take the results of merges that have ended; without a timeout wait for one at least."""
        if not self._merging:
            return
        refs = list(self._merging)
        for ref in ray.wait(refs, num_returns=1 if timeout_s is None else len(refs), timeout=timeout_s)[0]:
            file = self._merging.pop(ref)
            with user_errors_told(self._what):
                self._merged(file, ray.get(ref))

    def _merged(self, file: int, counters: Counters) -> None:
        del self._unmerged[self.shards.parts[file].as_py()]
        self._sum.add(file, counters)


class OrderedSum:
    """The sum of counters that come in any order, added in the order of their numbers: equal input, equal floats."""

    def __init__(self) -> None:
        self.total: Counters = {}
        """Of all numbers up to the first that has not come."""
        self._next = 0
        self._waiting: dict[int, Counters] = {}

    def add(self, number: int, counters: Counters) -> None:
        self._waiting[number] = counters
        while self._next in self._waiting:
            self.total = added([self.total, self._waiting.pop(self._next)])
            self._next += 1
