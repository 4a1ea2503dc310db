"""Checks one after the other: a line when each begins and ends, a failure is one line, and the rest still runs.

Knows nothing of what is checked.
"""

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from ray.exceptions import RayTaskError

from data.errors import UserError, is_user_error
from data.printable import printable
from jobs.pipelines.failure import reason_of
from jobs.runner.stage import log

State = Literal["ok", "FAILED", "skipped"]
LONGEST_CAUSE = 300
"""Characters of a cause."""


class CheckFailed(UserError):
    """The check ran, and what it found is wrong."""


class Skipped(Exception):
    """The check says nothing about this machine: what it needs is not installed."""


@dataclass(frozen=True)
class Check:
    """One thing to prove; `run` returns what it found, in words, or raises."""

    name: str
    run: Callable[[], str]
    limit_s: float
    """A check that takes longer has failed."""


@dataclass(frozen=True)
class Result:
    """How a check ended."""

    name: str
    state: State
    seconds: float
    found: str


def run_all(checks: Sequence[Check], log_file: Path, total: int, done: int = 0) -> list[Result]:
    """All checks in order, of `total` of which `done` ran before; tracebacks of those that fail go to `log_file`."""
    results = []
    for number, check in enumerate(checks, done + 1):
        place = f"[{number} of {total}] {check.name}"
        log(f"{place} ...")
        results.append(_run(check, log_file))
        log(f"{place}: {results[-1].state}, {results[-1].seconds:.1f} s: {results[-1].found}")
    return results


def _run(check: Check, log_file: Path) -> Result:
    started = time.perf_counter()
    state: State = "FAILED"
    try:
        with deadline(check.limit_s):
            found = check.run()
        state = "ok"
    except Skipped as reason:
        state, found = "skipped", str(reason)
    except Exception as error:
        found = cause_of(error)
        with log_file.open("a") as file:
            file.write(f"{check.name}:\n{''.join(traceback.format_exception(error))}\n")
    return Result(check.name, state, round(time.perf_counter() - started, 1), found)


def not_run(checks: Sequence[Check], why: str) -> list[Result]:
    """The results of checks that need one that failed."""
    return [Result(check.name, "skipped", 0.0, why) for check in checks]


def cause_of(error: Exception) -> str:
    """One line: the sentence of a user error, else the type and the last line of what was said."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if is_user_error(error):
        return printable(str(error), LONGEST_CAUSE)
    return printable(f"{type(error).__name__}: {reason_of(error)}", LONGEST_CAUSE)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise CheckFailed in the block after `seconds`. In the main thread only.

    Ray hands no exception of a signal handler on but KeyboardInterrupt, so that is what interrupts the block.
    """
    late = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal late
        late = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        if not late:
            raise
        raise CheckFailed(f"it had not ended after {seconds:g} s, and was stopped") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def print_results(results: Sequence[Result]) -> None:
    """A table, a line for each check."""
    width = max(len(r.name) for r in results)
    log(f"{'check':{width}}  state    seconds  found")
    for result in results:
        log(f"{result.name:{width}}  {result.state:7}  {result.seconds:7.1f}  {result.found}")


def failures(results: Sequence[Result]) -> list[str]:
    """The failed checks, each with its cause."""
    return [f"{r.name}: {r.found}" for r in results if r.state == "FAILED"]
