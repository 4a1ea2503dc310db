"""Progress of a pipeline, as lines for people: rows, rows/s, tokens/s, ETA. Knows nothing of what the rows are, and no Ray.

A thread prints what the driver adds up from its stream of finished pieces. Ray Data's own bars are for terminals, these lines are for logs too.
"""

import threading
import time
from types import TracebackType

PRINT_EVERY_S = 5.0


class Progress:
    """`with Progress("annotate", rows, pieces) as progress:`, then `progress.add(...)` for each finished piece.

    `rows_before` and `pieces_before` are what an earlier run had finished: they count as done, but not for the speed.
    """

    def __init__(self, what: str, rows: int, pieces: int, rows_before: int = 0, pieces_before: int = 0):
        self._what, self._total, self._total_pieces = what, rows, pieces
        self._before, self._pieces_before = rows_before, pieces_before
        self._rows = self._pieces = 0
        self._tokens = self._filled = self._budget = 0.0
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
            print(self.line(), flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rows(self) -> int:
        """Rows done by this run."""
        return self._rows

    def add(self, rows: int, tokens: float = 0, filled: float = 0, budget: float = 0) -> None:
        """One more piece: its rows, the tokens read, and how many tokens of the rows' `budget` were filled (0 = not packed)."""
        self._rows += rows
        self._pieces += 1
        self._tokens, self._filled, self._budget = self._tokens + tokens, self._filled + filled, self._budget + budget

    def line(self) -> str:
        seconds = max(self.seconds, 1e-9)
        done = self._before + self._rows
        left = self._total - done
        eta = "0 s" if not left else f"{left * seconds / self._rows:,.0f} s" if self._rows else "unknown"
        before = f" ({self._before:,} before)" if self._before else ""
        fill = f"  packed rows {self._filled / self._budget:.0%} full" if self._budget else ""
        return (
            f"{self._what}: {done:,}/{self._total:,} rows{before}  {self._rows / seconds:,.1f} rows/s  {self._tokens / seconds:,.0f} tokens/s"
            f"{fill}  {self._pieces_before + self._pieces:,}/{self._total_pieces:,} pieces  ETA {eta}"
        )

    def _print_until_stopped(self) -> None:
        while not self._stop.wait(PRINT_EVERY_S):
            print(self.line(), flush=True)
