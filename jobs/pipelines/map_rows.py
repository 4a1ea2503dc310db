"""Ray Data over a stage's rows: shards of Parquet files through a pool of actors, each row exactly once, resumed where it was killed.

What a shard, a piece and a part are: `data.shards`. Knows no model: the worker class and what it is given come from the caller.
"""

import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources
from ray.exceptions import RayTaskError

from cluster.pipeline_metrics import PipelineMetrics
from cluster.preflight import Demand, preflight
from cluster.progress import Progress
from data.counters import Counters, added
from data.errors import is_user_error
from data.operators import Prepare, Score, read_shard, write_shard
from data.shards import Input, Output, Shard, inputs_of, merge, write
from data.stage_metrics import PassMetrics
from data.storage import Storage
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError, log

READ_CPUS, WRITE_CPUS, MERGE_CPUS = 0.5, 0.25, 0.25
"""One CPU beside the actors is enough for all three; `cluster.preflight` keeps it free."""
WAVE_SHARDS = 4096
"""Shards of one Ray Data run: the driver keeps some 5 KB for each, and a million rows of 256 a shard are worth a restart of the pool."""


@dataclass(frozen=True)
class Pass:
    """What came of one pass over rows."""

    metrics: PassMetrics
    counters: Counters
    """The sum of what the workers counted."""


@dataclass(frozen=True)
class Beside:
    """How a pipeline gives way to what runs at the same time."""

    cpus: float
    """So many are for it."""
    order: Callable[[Shard], Any]
    """Which shards come first."""
    ended: threading.Event
    """Set when nobody needs the rest."""


def map_rows(
    what: str,
    sources: list[Storage],
    worker: type[Any],
    arguments: Mapping[str, Any],
    pool: WorkerPool,
    target: Storage,
    fingerprint: str = "",
    setting: str = "",
    beside: Beside | None = None,
) -> Pass:
    """Every row of the Parquet files in `sources` once through `worker`, into `target`, a part for each file and in its order.

    A `worker(**arguments)` takes and gives a table of a shard's rows; a static `companion(arguments)` of its class may give a function
    that prepares the rows on a CPU elsewhere. `fingerprint` says what the output depends on: parts and pieces that bear it are kept, so a killed run goes on
    where it was; without a stamp the target is made anew. `setting` names the pool in a preset. `beside`: others work at the same time.
    Returns rows, seconds, rows/s and the workers' tally. Raises StageError with the worker's own sentence, or if there is nothing to read;
    WouldHang if the pool can never start.
    """
    inputs, output = inputs_of(sources), Output(target.uri, fingerprint)
    if not inputs:
        raise StageError(f"{what}: no rows in {', '.join(s.uri for s in sources)}; check rows.sources")
    if not fingerprint:
        output.parts.remove()
        output.all_pieces.remove()
    parts = _Parts(what, inputs, output, pool.batch_rows, beside.order if beside else None)
    if missing := parts.num_missing:
        log(preflight(_demand(what, pool, missing, setting)))
    prepare = worker.companion(arguments) if hasattr(worker, "companion") else None
    with Progress(
        what, parts.num_rows, parts.num_pieces, parts.rows_before, parts.num_pieces - missing, PipelineMetrics(what)
    ) as progress:
        for shards in _waves(parts.missing()):
            for shard in _finished(what, shards, worker, arguments, prepare, pool, output, beside):
                counters = json.loads(shard["counters"])
                progress.add(
                    int(counters["rows"]),
                    *(counters.get(name, 0) for name in ("tokens", "filled_tokens", "budget_tokens")),
                )
                parts.piece_done(shard["part"])
        counters = parts.finish()
    return Pass(
        PassMetrics(
            rows=parts.num_rows,
            rows_before=parts.rows_before,
            seconds=round(progress.seconds, 1),
            rows_per_s=round(progress.rows / progress.seconds, 1),
        ),
        counters,
    )


class _Parts:
    """Which pieces are there, which parts are whole; a part's pieces are merged by a Ray task as soon as the last is there."""

    def __init__(
        self, what: str, inputs: Sequence[Input], output: Output, batch_rows: int, order: Callable[[Shard], Any] | None
    ):
        self._what, self._inputs, self._output, self._batch_rows, self._order = what, inputs, output, batch_rows, order
        output.sweep()
        self._all_counters: dict[str, Counters] = output.finished(inputs)
        self._pieces = set(output.pieces.names(".parquet"))
        self._merging: dict[Any, str] = {}
        self._merge = ray.remote(num_cpus=MERGE_CPUS, max_retries=-1)(merge)
        self.num_rows = sum(i.num_rows for i in inputs)
        self.num_pieces = sum(len(self._shards(i)) for i in inputs)
        missing = list(self.missing())
        self.num_missing, self.rows_before = len(missing), self.num_rows - sum(s.stop - s.start for s in missing)
        self._left = Counter(s.part for s in missing)
        self._names = {i.part: i for i in inputs if i.part not in self._all_counters}

    def missing(self) -> Iterator[Shard]:
        """The shards to do, in order."""
        missing = (
            s
            for i in self._inputs
            if i.part not in self._all_counters
            for s in self._shards(i)
            if s.piece not in self._pieces
        )
        return iter(sorted(missing, key=self._order)) if self._order else missing

    def _shards(self, file: Input) -> list[Shard]:
        return file.shards(self._batch_rows)

    def piece_done(self, part: str) -> None:
        self._left[part] -= 1
        if not self._left[part]:
            self._start_merge(part)
        self._collect(timeout_s=0)

    def _start_merge(self, part: str) -> None:
        pieces = [s.piece for s in self._shards(self._names.pop(part))]
        self._merging[self._merge.remote(part, pieces, self._output)] = part

    def _collect(self, timeout_s: float | None) -> None:
        done, _ = (
            ray.wait(list(self._merging), num_returns=len(self._merging), timeout=timeout_s)
            if self._merging
            else ([], [])
        )
        for ref in done:
            try:
                self._all_counters[self._merging.pop(ref)] = ray.get(ref)
            except RayTaskError as error:
                if not is_user_error(error.cause):
                    raise
                raise StageError(f"{self._what}: {error.cause}") from None

    def finish(self) -> Counters:
        """Wait for the last merges and remove what is left over; returns the sum of all parts' tallies."""
        for part in [name for name in self._names if not self._left[name]]:
            self._start_merge(part)  # all of its pieces were there before
        self._collect(timeout_s=None)
        assert not self._names, f"every shard was done, but no merge was started for {sorted(self._names)[:3]}"
        self._output.all_pieces.remove()
        return added(self._all_counters[i.part] for i in self._inputs)


def _demand(what: str, pool: WorkerPool, num_shards: int, setting: str) -> Demand:
    most = min(pool.num_actors, num_shards)
    return Demand(
        what,
        min(pool.min_actors or most, most),
        most,
        pool.cpus_per_actor,
        pool.gpus_per_actor,
        setting,
        labels=pool.labels,
    )


def _waves(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    while wave := list(itertools.islice(shards, WAVE_SHARDS)):
        yield wave


def _finished(
    what: str,
    shards: list[Shard],
    worker: type[Any],
    arguments: Mapping[str, Any],
    prepare: Prepare | None,
    pool: WorkerPool,
    output: Output,
    beside: Beside | None,
) -> Iterator[dict[str, Any]]:
    """The shards as they are written, each a record of a few bytes."""
    demand = _demand(what, pool, len(shards), "")
    whole = {"batch_size": 1, "batch_format": "pyarrow"}
    with _leaving(beside.cpus if beside else 0.0):
        dataset = (
            ray.data.from_items([vars(s) for s in shards], override_num_blocks=len(shards))
            .map_batches(read_shard, fn_kwargs={"prepare": prepare}, num_cpus=READ_CPUS, **whole)
            .map_batches(
                Score,
                fn_constructor_args=(worker, dict(arguments)),
                compute=ray.data.ActorPoolStrategy(min_size=demand.min_actors, max_size=demand.max_actors),
                num_cpus=pool.cpus_per_actor,
                num_gpus=pool.gpus_per_actor,
                label_selector=pool.labels or None,
                **whole,
            )
            .map_batches(write_shard, fn_kwargs={"output": output}, num_cpus=WRITE_CPUS, **whole)
        )
    dataset.set_name(what)  # as the dashboard shows it
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for shard in batch.to_pylist():
            if shard["failure"]:
                raise StageError(f"{what}: {shard['failure']}")
            if beside and beside.ended.is_set():
                raise StageError(f"{what}: nobody needs the rest")
            yield shard
    statistics = dataset.stats()
    Storage(f"{output.uri}.ray_data.txt").write_bytes(statistics.encode())
    log(f"{what}: Ray Data: {'; '.join(line for line in statistics.splitlines() if line.startswith('Operator'))}")


@contextlib.contextmanager
def _leaving(cpus: float) -> Iterator[None]:
    """Data sets that are made in the block leave so many CPUs of the cluster alone."""
    context = ray.data.DataContext.get_current()
    if cpus:
        context = context.copy()
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=ray.cluster_resources()["CPU"] - cpus
        )
    with ray.data.DataContext.current(context):
        yield


def write_table(table: pa.Table, folder: Storage, name: str = "part-00000.parquet") -> None:
    """One Parquet file, whole or not at all."""
    write([table], table.schema, folder / name)
