"""The operators of one pass over rows, as Ray Data runs them: read a shard, score it in a pool of actors, write it.

Knows no part and no model.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ExecutionResources

from data.operators import Prepare, Score, read_shard, write_shard
from data.shard_list import ShardList
from data.shards import Output
from data.storage import Storage
from jobs.pipelines import shard_source
from jobs.pipelines.shard_source import ShardSource, one_by_one
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError, log

READ_CPUS, WRITE_CPUS = 0.5, 0.25
"""With MERGE_CPUS one CPU beside the actors is enough; `cluster.preflight` keeps it free."""


@dataclass(frozen=True)
class ShardPipeline:
    """The operators of Ray Data: read and prepare a shard, score it, write it."""

    what: str
    worker: type[Any]
    arguments: dict[str, Any]
    prepare: Prepare | None
    pool: WorkerPool
    output: Output
    cpus_left: float
    """Of the cluster's; they are for what runs beside it."""

    def finished(self, shards: ShardList, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
        """The shards with these numbers as they are written, each a record of a few bytes. One pool of actors takes
        all of them."""
        num_shards = len(numbers)
        if not num_shards:
            return
        dataset = self._dataset(ShardSource(shards, numbers), num_shards)
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for shard in batch.to_pylist():
                if shard["failure"]:
                    raise StageError(f"{self.what}: {shard['failure']}")
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
        with _context(self.cpus_left):
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
