"""Ray Data over a stage's rows: shards of Parquet files through a pool of actors, each row exactly once, resumable.

`data.shards` defines shard, piece and part. Knows no model: the caller gives the worker class and its arguments.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.pipeline_metrics import PipelineMetrics
from cluster.preflight import preflight
from cluster.progress import Progress
from data.counters import Counters
from data.shards import Output, inputs_of, write
from data.stage_metrics import PassMetrics
from data.storage import Storage
from jobs.pipelines.parts import Order, Parts
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError, log

TOKEN_COUNTERS = ("tokens", "filled_tokens", "budget_tokens")


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
    from jobs.pipelines.shard_pipeline import ShardPipeline  # with Ray Data and pandas

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
    cpus_left = beside.cpus if beside else 0.0
    pipeline = ShardPipeline(what, worker, dict(arguments), prepare, pool, output, cpus_left)
    before, watch = (parts.rows_before, num_pieces - missing), PipelineMetrics(what)
    with Progress(what, num_rows, num_pieces, *before, watch) as progress:
        for shard in pipeline.finished(parts.shards, parts.missing):
            if beside and beside.ended.is_set():
                raise StageError(f"{what}: nobody needs the rest")
            counters = json.loads(shard["counters"])
            progress.add(int(counters["rows"]), *(counters.get(name, 0) for name in TOKEN_COUNTERS))
            parts.piece_done(shard["part"])
        counters = parts.finish()
    output.require_owner()
    output.totals.write_json(counters)
    seconds, rows_per_s = round(progress.seconds, 1), round(progress.rows / progress.seconds, 1)
    metrics = PassMetrics(rows=num_rows, rows_before=parts.rows_before, seconds=seconds, rows_per_s=rows_per_s)
    return Pass(metrics, counters)


def write_table(table: pa.Table, folder: Storage, name: str = "part-00000.parquet") -> None:
    """One Parquet file, whole or not at all."""
    write([table], table.schema, folder / name)
