"""Calls of functions as Ray tasks, some at a time, or in this process where all work is less than a task's start.

Functions are given small records and what other calls gave, which stays on the cluster. Knows nothing of what they do.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from data.errors import is_user_error
from jobs.runner.stage import StageError

TASK_CPUS = 1.0
"""Of each task: it reads, parses or compares, on one thread."""
MOST_AT_ONCE = 1000
"""Calls that wait or run where nobody sets a number; each costs the driver some KB."""
ROWS_PER_RUN = 4096
"""Rows of one run of Ray Data: the driver keeps some 5 KB for each until its end."""

Result = Any
"""What a call gave; to the driver a reference."""


@contextlib.contextmanager
def user_errors_told(what: str = "") -> Iterator[None]:
    """An error of a Ray task that a person can fix becomes a StageError with its sentence, behind `what`."""
    try:
        yield
    except RayTaskError as error:
        if not is_user_error(error.cause):
            raise
        raise StageError(f"{what}: {error.cause}" if what else str(error.cause)) from None


class Calls(Protocol):
    """Where functions are called."""

    def submit(self, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> list[Result]:
        """What the function gives, a reference to each of its results; `arguments` may hold such references."""

    def get(self, results: Sequence[Result]) -> list[Any]:
        """The results; raises the function's user error as a StageError."""

    def each(
        self, what: str, rows: Sequence[dict[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Rows through a function that takes one as a table, in any order. A `failure` among them ends it."""


class HereCalls:
    """Calls in this process, one after another."""

    def submit(self, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> list[Result]:
        found = function(*arguments)
        return [found] if num_returns == 1 else list(found)

    def get(self, results: Sequence[Result]) -> list[Any]:
        return list(results)

    def each(
        self, what: str, rows: Sequence[dict[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        for row in rows:
            yield from _sound(what, function(pa.Table.from_pylist([row]), **arguments))


class ClusterCalls:
    """Calls as Ray tasks, at most `at_once` at a time (None = as many as fit); rows go through Ray Data."""

    def __init__(self, at_once: int | None = None):
        self._at_once = at_once
        self._running: list[ray.ObjectRef] = []
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, function: Callable[..., Any], *arguments: Any, num_returns: int = 1) -> list[Result]:
        while len(self._running) >= (self._at_once or MOST_AT_ONCE):
            self._running = ray.wait(self._running, fetch_local=False)[1]
        if function not in self._remote:
            self._remote[function] = ray.remote(num_cpus=TASK_CPUS, max_retries=-1)(function)
        found = self._remote[function].options(num_returns=num_returns).remote(*arguments)
        results = [found] if num_returns == 1 else list(found)
        self._running.append(results[0])
        return results

    def get(self, results: Sequence[Result]) -> list[Any]:
        self._running = []  # what runs is awaited here; a reference would keep its result
        with user_errors_told():
            return list(ray.get(list(results)))

    def each(
        self, what: str, rows: Sequence[dict[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        import ray.data  # with pandas: a third of a second, which the tasks of `submit` do without

        for start in range(0, len(rows), ROWS_PER_RUN):
            wave = rows[start : start + ROWS_PER_RUN]
            dataset = ray.data.from_items(list(wave), override_num_blocks=len(wave)).map_batches(
                function,
                batch_size=1,
                batch_format="pyarrow",
                fn_kwargs=dict(arguments),
                num_cpus=TASK_CPUS,
                compute=ray.data.TaskPoolStrategy(self._at_once),
            )
            dataset.set_name(what)  # the dashboard shows it
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from _sound(what, batch)


def _sound(what: str, table: pa.Table) -> Iterator[dict[str, Any]]:
    for row in table.to_pylist():
        if row["failure"]:
            raise StageError(row["failure"])
        yield row
