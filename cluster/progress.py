"""Progress of a pipeline, as events: rows, rows/s, tokens/s, ETA. Knows nothing of what the rows are, and no Ray.

A thread logs the driver's sums over its stream of finished pieces, and passes the metrics to `watch`
(`cluster.pipeline_metrics`). Ray Data's own bars are for terminals, these lines are for logs too.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from cluster.events import log_event

PRINT_EVERY_S = 5.0


class Progress:
    """`with Progress("annotate", rows, pieces) as progress:`, then `progress.add(...)` for each finished piece.

    `rows_before` and `pieces_before` are what an earlier run had finished: they count as done, but not for the speed.
    """

    def __init__(
        self,
        what: str,
        rows: int,
        pieces: int,
        rows_before: int = 0,
        pieces_before: int = 0,
        watch: Callable[[dict[str, float]], None] = lambda _: None,
    ):
        self._what, self._total, self._total_pieces = what, rows, pieces
        self._before, self._pieces_before = rows_before, pieces_before
        self._rows = self._pieces = 0
        self._tokens = self._filled = self._budget = 0.0
        self._watch = watch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._print_until_stopped, daemon=True)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._report()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rows(self) -> int:
        """Rows done by this run."""
        return self._rows

    def add(self, rows: int, tokens: float = 0, filled: float = 0, budget: float = 0) -> None:
        """One more piece: its rows, the tokens read, and the tokens `filled` of the packs' `budget` (0 = none)."""
        self._rows += rows
        self._pieces += 1
        self._tokens, self._filled, self._budget = self._tokens + tokens, self._filled + filled, self._budget + budget

    def metrics(self) -> dict[str, float]:
        """Rows in all and done, rows and tokens a second, seconds left (after the first row), share of packs filled."""
        seconds, done = max(self.seconds, 1e-9), self._before + self._rows
        found = {
            "rows": float(self._total),
            "rows_done": float(done),
            "rows_per_s": self._rows / seconds,
            "tokens_per_s": self._tokens / seconds,
        }
        if self._budget:
            found["packs_filled"] = self._filled / self._budget
        if self._rows or done == self._total:
            found["eta_seconds"] = (self._total - done) * seconds / max(self._rows, 1)
        return found

    def line(self) -> str:
        found = self.metrics()
        eta = f"{found['eta_seconds']:,.0f} s" if "eta_seconds" in found else "unknown"
        before = f" ({self._before:,} before)" if self._before else ""
        fill = f"  packs {found['packs_filled']:.0%} full" if "packs_filled" in found else ""
        return (
            f"{self._what}: {found['rows_done']:,.0f}/{self._total:,} rows{before}  "
            f"{found['rows_per_s']:,.1f} rows/s  {found['tokens_per_s']:,.0f} tokens/s"
            f"{fill}  {self._pieces_before + self._pieces:,}/{self._total_pieces:,} pieces  ETA {eta}"
        )

    def _report(self) -> None:
        metrics = self.metrics()
        log_event(self.line(), "pipeline.progress", pipeline=self._what, metrics=metrics)
        self._watch(metrics)

    def _print_until_stopped(self) -> None:
        while not self._stop.wait(PRINT_EVERY_S):
            self._report()
