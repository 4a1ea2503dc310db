"""Progress of a Ray Data pipeline, as lines for people: rows, rows/s, tokens/s, ETA. Knows nothing of what the rows are.

Workers report to a small Ray actor; a thread in the driver prints. Ray Data's own bars are for terminals, these lines are for logs too.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray

Report = Callable[[int, int], None]
"""Given to workers: report(rows, tokens)."""
PRINT_EVERY_S = 5.0


class _Meter:
    """Lives in Ray: adds up what workers report."""

    def __init__(self) -> None:
        self.rows = self.tokens = 0

    def add(self, rows: int, tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens

    def read(self) -> tuple[int, int]:
        return self.rows, self.tokens


class Reporter:
    """Picklable; sends counts to the meter and never waits."""

    def __init__(self, meter: Any):
        self._meter = meter

    def __call__(self, rows: int, tokens: int) -> None:
        self._meter.add.remote(rows, tokens)


class Progress:
    """`with Progress("annotate", total) as progress:` pass `progress.report` to the workers."""

    def __init__(self, what: str, total_rows: int):
        self._what, self._total = what, total_rows
        self._meter = ray.remote(num_cpus=0)(_Meter).remote()
        self.report: Report = Reporter(self._meter)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._print_until_stopped, daemon=True)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._print()
        ray.kill(self._meter)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def read(self) -> tuple[int, int]:
        """Rows and tokens so far; rows may be counted again when Ray retries a batch."""
        rows, tokens = ray.get(self._meter.read.remote())
        return int(rows), int(tokens)

    def _print_until_stopped(self) -> None:
        while not self._stop.wait(PRINT_EVERY_S):
            self._print()

    def _print(self) -> None:
        rows, tokens = self.read()
        speed = rows / self.seconds
        eta = f"{max(0.0, (self._total - rows) / speed):.0f} s" if rows else "unknown"
        print(f"{self._what}: {rows:,}/{self._total:,} rows  {speed:,.1f} rows/s  {tokens / self.seconds:,.0f} tokens/s  ETA {eta}", flush=True)
