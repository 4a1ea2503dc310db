"""The steps of a shard through a pipeline: read and prepare, score, write. Each maps one row with its payload.

One row an operator keeps a shard whole: Ray Data may split or bundle blocks of rows, but not inside a value. Errors
that a person can fix travel as a sentence in the row (`failure`): an exception in a worker reaches the driver only
inside pages of Ray's traceback. Knows neither Ray nor the worker's model.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from data.counters import counters_of, with_counters
from data.errors import is_user_error
from data.shards import Output, Shard, packed, read, unpacked, write_piece

Prepare = Callable[[pa.Table], pa.Table]
"""Preparation of a worker's rows on a CPU elsewhere, before they reach it."""


def read_shard(batch: pa.Table, prepare: Prepare | None) -> pa.Table:
    """A row that names a shard -> the same with its rows as payload."""
    shard = _shard(batch)

    def work() -> bytes:
        table = read(shard)
        return packed(prepare(table) if prepare else table)

    return _attempted(shard, "", work)


class Score:
    """Ray Data's view of a worker: payload in, payload out, with its counters and the seconds it took."""

    def __init__(self, worker: type[Any], arguments: Mapping[str, Any]):
        self._worker, self._failure = None, ""
        _log_workers()
        try:
            self._worker = worker(**arguments)
        except Exception as error:
            if not is_user_error(error):
                raise
            # Ray Data would restart the actor for ever, and bury the sentence; so it lives, and returns the sentence.
            self._failure = str(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        started = time.perf_counter()
        return _attempted(
            _shard(batch), self._failure or _failure(batch), lambda: packed(self._scored(_payload(batch))), started
        )

    def _scored(self, rows: pa.Table) -> pa.Table:
        assert self._worker is not None, "a worker that failed to start returned its failure"
        result: pa.Table = self._worker(rows)
        return with_counters(result, {"rows": len(rows), **counters_of(result.schema)})


def _log_workers() -> None:
    """Send the workers' log lines (the kernels they chose) to the job's output; Ray adds the worker's name."""
    logger = logging.getLogger("actors")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def write_shard(batch: pa.Table, output: Output) -> pa.Table:
    """A scored shard -> its piece on storage, and a row of a few bytes about it."""
    shard, failure = _shard(batch), _failure(batch)
    table = None if failure else _payload(batch)

    def work() -> bytes:
        assert table is not None, "only what did not fail is written"
        write_piece(table, shard, output)
        return b""

    row = _attempted(shard, failure, work).drop(["payload", "seconds"])
    counters = {} if table is None else counters_of(table.schema)
    return row.append_column("seconds", batch.column("seconds")).append_column(
        "counters", pa.array([json.dumps(counters)])
    )


def _attempted(shard: Shard, failure: str, work: Callable[[], bytes], started: float = 0.0) -> pa.Table:
    """The row after `work`, or why there is no payload."""
    payload = b""
    if not failure:
        try:
            payload = work()
        except Exception as error:
            if not is_user_error(error):
                raise
            failure = str(error)
    return pa.table(
        {
            **{name: [value] for name, value in vars(shard).items()},
            "payload": pa.array([payload], pa.large_binary()),
            "failure": [failure],
            "seconds": [time.perf_counter() - started if started else 0.0],
        }
    )


def _shard(batch: pa.Table) -> Shard:
    assert len(batch) == 1, f"a shard travels alone, but {len(batch)} came together: batch_size must be 1"
    return Shard(**{name: batch.column(name)[0].as_py() for name in ("uri", "part", "start", "stop")})


def _failure(batch: pa.Table) -> str:
    return str(batch.column("failure")[0].as_py())


def _payload(batch: pa.Table) -> pa.Table:
    return unpacked(batch.column("payload")[0].as_buffer())
