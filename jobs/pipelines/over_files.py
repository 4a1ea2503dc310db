"""A function over all files of a folder, as Ray tasks: the driver gets what it says of each few files, in their order.

For what needs no model and no output of its own: counts, numbers, a few rows. Knows nothing of what is read.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow.parquet as pq
import ray

from data.conversation import Conversation, from_table
from data.shards import Input, inputs_of
from data.storage import Storage
from jobs.pipelines.tasks import user_errors_told

Result = TypeVar("Result")
ROWS_PER_TASK = 50_000
"""A task takes files until it has so many rows: some seconds of reading."""
CPUS_PER_TASK = 0.5
AHEAD = 64
"""Tasks whose results wait for their turn; more would only wait for CPUs."""


def over_files(what: str, folder: Storage, work: Callable[..., Result], *arguments: Any) -> Iterator[Result]:
    """`work(files, *arguments)` of neighboring files, together just over ROWS_PER_TASK rows, in their order.

    What one task could do is done here: its process would take longer to start. Raises StageError with the sentence of
    an error that a person can fix.
    """
    tasks = neighbors(inputs_of([folder]), ROWS_PER_TASK)
    if len(tasks) <= 1 or not ray.is_initialized():
        yield from (work(files, *arguments) for files in tasks)
        return
    remote = ray.remote(num_cpus=CPUS_PER_TASK, max_retries=-1)(work)
    waiting: deque[Any] = deque()
    for files in tasks:
        waiting.append(remote.remote(files, *arguments))
        if len(waiting) > AHEAD:
            yield _result(what, waiting.popleft())
    while waiting:
        yield _result(what, waiting.popleft())


def _result(what: str, ref: Any) -> Any:
    with user_errors_told(what):
        return ray.get(ref)


def neighbors(inputs: Iterable[Input], rows: int) -> list[list[Input]]:
    """Neighboring files, together just over `rows` rows."""
    tasks: list[list[Input]] = []
    filled = rows
    for file in inputs:
        if filled >= rows:
            tasks.append([])
            filled = 0
        tasks[-1].append(file)
        filled += file.num_rows
    return tasks


def rows_in(files: Sequence[Input]) -> Iterator[Conversation]:
    """The conversations in these files, a file at a time."""
    for file in files:
        stored = Storage(file.uri)
        yield from from_table(pq.read_table(stored.path, filesystem=stored.arrow_fs))
