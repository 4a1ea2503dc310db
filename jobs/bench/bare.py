"""The bare kernel on all cores: processes that hold an Annotator and a plain loop, no Ray. Knows nothing of the job."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pyarrow as pa

from actors.scoring.annotator import Annotator

_loaded: list[Annotator] = []
"""This process's scorer: a pool's initializer has no other place to leave it."""


def bare_seconds(arguments: dict[str, Any], tables: Sequence[pa.Table], num_processes: int) -> float:
    """Wall-clock seconds to score `tables`, which are in memory. Each process has loaded the model and scored a row."""
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _load, (arguments, tables[0][:1])) as pool:
        # A process starts when a task needs it, and takes none before it has loaded: so many naps start them all.
        list(pool.map(_nap, [1.0] * num_processes))
        started = time.perf_counter()
        list(pool.map(_score, tables))
        return time.perf_counter() - started


def _load(arguments: dict[str, Any], row: pa.Table) -> None:
    _loaded.append(Annotator(**arguments))
    _loaded[0](row)


def _nap(seconds: float) -> None:
    time.sleep(seconds)


def _score(table: pa.Table) -> int:
    return len(_loaded[0](table))
