"""Ray Data over a stage's rows: shards of Parquet files through a pool of actors, each row exactly once, resumable.

`data.shards` defines shard, piece and part. Knows no model: the caller gives the worker class and its arguments.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources

from cluster.pipeline_metrics import PipelineMetrics
from cluster.preflight import preflight
from cluster.progress import Progress
from data.counters import Counters
from data.operators import Prepare, Score, read_shard, write_shard
from data.shards import Output, inputs_of, write
from data.stage_metrics import PassMetrics
from data.storage import Storage
from jobs.pipelines import shard_source
from jobs.pipelines.parts import Order, Parts
from jobs.pipelines.shard_source import ShardSource, one_by_one
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError, log

TOKEN_COUNTERS = ("tokens", "filled_tokens", "budget_tokens")
READ_CPUS, WRITE_CPUS = 0.5, 0.25
"""With MERGE_CPUS one CPU beside the actors is enough; `cluster.preflight` keeps it free."""


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
    order: Order
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
    parts = Parts(what, inputs, output, pool.batch_rows, beside.order if beside else None)
    num_rows, num_pieces = parts.shards.num_rows, len(parts.shards)
    if missing := len(parts.missing):
        log(preflight(pool.demand(what, setting, missing)))
    prepare = worker.companion(arguments) if hasattr(worker, "companion") else None
    pipeline = _Pipeline(what, worker, dict(arguments), prepare, pool, output, beside)
    before, watch = (parts.rows_before, num_pieces - missing), PipelineMetrics(what)
    with Progress(what, num_rows, num_pieces, *before, watch) as progress:
        for shard in pipeline.finished(ShardSource(parts.shards, parts.missing), missing) if missing else ():
            counters = json.loads(shard["counters"])
            progress.add(int(counters["rows"]), *(counters.get(name, 0) for name in TOKEN_COUNTERS))
            parts.piece_done(shard["part"])
        counters = parts.finish()
    output.require_owner()
    output.totals.write_json(counters)
    seconds, rows_per_s = round(progress.seconds, 1), round(progress.rows / progress.seconds, 1)
    metrics = PassMetrics(rows=num_rows, rows_before=parts.rows_before, seconds=seconds, rows_per_s=rows_per_s)
    return Pass(metrics, counters)


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

    def finished(self, source: ShardSource, num_shards: int) -> Iterator[dict[str, Any]]:
        """The shards as they are written, each a record of a few bytes. One pool of actors takes all of them."""
        dataset = self._dataset(source, num_shards)
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for shard in batch.to_pylist():
                if shard["failure"]:
                    raise StageError(f"{self.what}: {shard['failure']}")
                if self.beside and self.beside.ended.is_set():
                    raise StageError(f"{self.what}: nobody needs the rest")
                yield shard
        some = shard_source.NEWEST
        of = f", of the newest {some:,} or more of {num_shards:,} shards" if num_shards >= 2 * some else ""
        statistics = f"Ray Data{of}\n{dataset.stats()}"
        Storage(f"{self.output.uri}.ray_data.txt").write_bytes(statistics.encode())
        operators = "; ".join(line for line in statistics.splitlines() if line.startswith("Operator"))
        log(f"{self.what}: Ray Data{of}: {operators}")

    def _dataset(self, source: ShardSource, num_shards: int) -> ray.data.Dataset:
        pool, demand = self.pool, self.pool.demand(self.what, "", num_shards)
        whole = {"batch_size": 1, "batch_format": "pyarrow"}
        with _context(self.beside.cpus if self.beside else 0.0):
            dataset = (
                # It only makes names: a CPU of its own would be missed by the actors.
                ray.data.read_datasource(source, override_num_blocks=source.num_lists, num_cpus=0)
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
def _context(cpus_left: float) -> Iterator[None]:
    """Datasets that are created in the block have a block for each shard, and leave so many CPUs of the cluster."""
    context = ray.data.DataContext.get_current().copy()
    one_by_one(context)
    if cpus_left:
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=ray.cluster_resources()["CPU"] - cpus_left
        )
    with ray.data.DataContext.current(context):
        yield


def write_table(table: pa.Table, folder: Storage, name: str = "part-00000.parquet") -> None:
    """One Parquet file, whole or not at all."""
    write([table], table.schema, folder / name)
