"""Ray Data over a stage's rows: shards of Parquet files through a pool of actors, each row exactly once, resumable.

`data.shards` defines shard, piece and part. Knows no model: the caller gives the worker class and its arguments.
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
from cluster.preflight import preflight
from cluster.progress import Progress
from data.counters import Counters, added
from data.errors import is_user_error
from data.operators import Prepare, Score, read_shard, write_shard
from data.shards import Input, Output, Shard, inputs_of, merge, write
from data.stage_metrics import PassMetrics
from data.storage import Storage
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError, log

TOKEN_COUNTERS = ("tokens", "filled_tokens", "budget_tokens")
READ_CPUS, WRITE_CPUS, MERGE_CPUS = 0.5, 0.25, 0.25
"""One CPU beside the actors is enough for all three; `cluster.preflight` keeps it free."""
WAVE_SHARDS = 4096
"""Shards of one Ray Data run; the pool restarts after it. The driver keeps some 5 KB for each shard, and a million rows
(256 per shard) justify a restart."""


@dataclass(frozen=True)
class Pass:
    """The result of one pass over rows."""

    metrics: PassMetrics
    counters: Counters
    """The sum of what the workers counted."""


@dataclass(frozen=True)
class Beside:
    """How a pipeline gives way to a training that runs at the same time."""

    cpus: float
    """CPUs of the cluster that the training keeps."""
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
    """Every row of the Parquet files in `sources` once through `worker`, into `target`: a part per file, in its order.

    A `worker(**arguments)` takes and gives a table of a shard's rows; a static `companion(arguments)` of its class may
    give a function that prepares the rows on a CPU elsewhere. `fingerprint` identifies the output: parts and pieces
    with it are kept, so a killed run resumes; without one the target is rebuilt. `setting`: the pool's preset path.
    Raises StageError with the worker's own message, or if there are no rows; WouldHang if the pool can never start.
    """
    inputs, output = inputs_of(sources), Output(target.uri, fingerprint)
    if not inputs:
        raise StageError(f"{what}: no rows in {', '.join(s.uri for s in sources)}; check rows.sources")
    if not fingerprint:
        output.parts.remove()
        output.all_pieces.remove()
    parts = _Parts(what, inputs, output, pool.batch_rows, beside.order if beside else None)
    if missing := parts.num_missing:
        log(preflight(pool.demand(what, setting, missing)))
    prepare = worker.companion(arguments) if hasattr(worker, "companion") else None
    pipeline = _Pipeline(what, worker, dict(arguments), prepare, pool, output, beside)
    done = parts.num_pieces - missing
    with Progress(what, parts.num_rows, parts.num_pieces, parts.rows_before, done, PipelineMetrics(what)) as progress:
        for shards in _waves(parts.missing()):
            for shard in pipeline.finished(shards):
                counters = json.loads(shard["counters"])
                progress.add(int(counters["rows"]), *(counters.get(name, 0) for name in TOKEN_COUNTERS))
                parts.piece_done(shard["part"])
        counters = parts.finish()
    output.require_owner()
    output.totals.write_json(counters)
    seconds, rows_per_s = round(progress.seconds, 1), round(progress.rows / progress.seconds, 1)
    metrics = PassMetrics(rows=parts.num_rows, rows_before=parts.rows_before, seconds=seconds, rows_per_s=rows_per_s)
    return Pass(metrics, counters)


class _Parts:
    """Finished pieces and parts; a Ray task merges a part's pieces as soon as all are there."""

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
        inputs = (i for i in self._inputs if i.part not in self._all_counters)
        missing = (s for i in inputs for s in self._shards(i) if s.piece not in self._pieces)
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
        if not self._merging:
            return
        for ref in ray.wait(list(self._merging), num_returns=len(self._merging), timeout=timeout_s)[0]:
            try:
                self._all_counters[self._merging.pop(ref)] = ray.get(ref)
            except RayTaskError as error:
                if not is_user_error(error.cause):
                    raise
                raise StageError(f"{self._what}: {error.cause}") from None

    def finish(self) -> Counters:
        """Wait for the last merges and remove leftover pieces; returns the sum of all parts' counters."""
        for part in [name for name in self._names if not self._left[name]]:
            self._start_merge(part)  # an earlier run wrote all of its pieces
        self._collect(timeout_s=None)
        assert not self._names, f"every shard was done, but no merge was started for {sorted(self._names)[:3]}"
        self._output.all_pieces.remove()
        return added(self._all_counters[i.part] for i in self._inputs)


def _waves(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    while wave := list(itertools.islice(shards, WAVE_SHARDS)):
        yield wave


@dataclass(frozen=True)
class _Pipeline:
    """The operators of Ray Data: read and prepare a shard, score it, write it."""

    what: str
    worker: type[Any]
    arguments: dict[str, Any]
    prepare: Prepare | None
    pool: WorkerPool
    output: Output
    beside: Beside | None

    def finished(self, shards: list[Shard]) -> Iterator[dict[str, Any]]:
        """The shards as they are written, each a record of a few bytes."""
        dataset = self._dataset(shards)
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for shard in batch.to_pylist():
                if shard["failure"]:
                    raise StageError(f"{self.what}: {shard['failure']}")
                if self.beside and self.beside.ended.is_set():
                    raise StageError(f"{self.what}: nobody needs the rest")
                yield shard
        statistics = dataset.stats()
        Storage(f"{self.output.uri}.ray_data.txt").write_bytes(statistics.encode())
        operators = "; ".join(line for line in statistics.splitlines() if line.startswith("Operator"))
        log(f"{self.what}: Ray Data: {operators}")

    def _dataset(self, shards: list[Shard]) -> ray.data.Dataset:
        pool, demand = self.pool, self.pool.demand(self.what, "", len(shards))
        whole = {"batch_size": 1, "batch_format": "pyarrow"}
        with _leaving(self.beside.cpus if self.beside else 0.0):
            dataset = (
                ray.data.from_items([vars(s) for s in shards], override_num_blocks=len(shards))
                .map_batches(read_shard, fn_kwargs={"prepare": self.prepare}, num_cpus=READ_CPUS, **whole)
                .map_batches(
                    Score,
                    fn_constructor_args=(self.worker, self.arguments),
                    compute=ray.data.ActorPoolStrategy(min_size=demand.min_actors, max_size=demand.max_actors),
                    num_cpus=pool.cpus_per_actor,
                    num_gpus=pool.gpus_per_actor,
                    label_selector=pool.labels or None,
                    **whole,
                )
                .map_batches(write_shard, fn_kwargs={"output": self.output}, num_cpus=WRITE_CPUS, **whole)
            )
        dataset.set_name(self.what)  # the dashboard shows it
        return dataset


@contextlib.contextmanager
def _leaving(cpus: float) -> Iterator[None]:
    """Datasets that are created in the block do not use so many CPUs of the cluster."""
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
