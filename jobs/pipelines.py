"""Ray Data over a stage's rows: read Parquet, map batches through a pool of actors, write Parquet, say how far it is.

Knows no model: the worker class and what it is given come from the caller.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import ray.data

from cluster.progress import Progress, Report
from data.storage import Storage
from jobs.preset import WorkerPool
from jobs.stage import Figures, StageError, say


class Reporting:
    """A Ray Data worker around another: tells the meter what came out of each batch."""

    def __init__(self, worker: type[Any], arguments: Mapping[str, Any], report: Report):
        self._worker, self._report = worker(**arguments), report

    def __call__(self, batch: pa.Table) -> pa.Table:
        result: pa.Table = self._worker(batch)
        tokens = pa.compute.sum(result.column("tokens")).as_py() if "tokens" in result.column_names else 0
        self._report(len(batch), tokens or 0)
        return result


def map_rows(what: str, sources: list[Storage], worker: type[Any], arguments: Mapping[str, Any], pool: WorkerPool, target: Storage) -> Figures:
    """Every row of the Parquet files in `sources` once through `worker`, into `target`; returns rows, seconds and rows/s.

    Raises StageError if there is nothing to read.
    """
    files = [f for s in sources for f in s.files(".parquet")]
    total = sum(count_rows(s) for s in sources)
    if not total:
        raise StageError(f"{what}: no rows in {', '.join(s.uri for s in sources)}; check rows.sources")
    with Progress(what, total) as progress:
        dataset = (
            ray.data.read_parquet(files, filesystem=sources[0].arrow_fs)
            # Small blocks: the read gives few large ones, and the block is the unit of work and of retry.
            .repartition(target_num_rows_per_block=pool.batch_rows)
            .map_batches(
                Reporting,
                fn_constructor_args=(worker, dict(arguments), progress.report),
                batch_size=pool.batch_rows,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(pool.num_actors, -(-total // pool.batch_rows))),
                num_cpus=pool.cpus_per_actor,
                num_gpus=pool.gpus_per_actor,
            )
        )
        dataset.write_parquet(target.path, filesystem=target.arrow_fs)
        statistics = dataset.stats()
        Storage(f"{target.uri}.ray_data.txt").write_bytes(statistics.encode())
        say(f"{what}: Ray Data: {'; '.join(line for line in statistics.splitlines() if line.startswith('Operator'))}")
        return {"rows": total, "seconds": round(progress.seconds, 1), "rows_per_s": round(total / progress.seconds, 1)}


def count_rows(folder: Storage) -> int:
    """Rows in the Parquet files of a folder, read from their footers."""
    fs = folder.arrow_fs
    return sum(pyarrow.parquet.read_metadata(path, filesystem=fs).num_rows for path in folder.files(".parquet"))


def ids_of(folder: Storage) -> list[str]:
    """All row ids in a folder, sorted."""
    fs = folder.arrow_fs
    columns = [pyarrow.parquet.read_table(path, columns=["id"], filesystem=fs).column("id") for path in folder.files(".parquet")]
    return sorted(i for column in columns for i in column.to_pylist())


def audit(what: str, expected: list[str], found: list[str]) -> None:
    """Every id exactly once: raise StageError with the counts of lost and doubled rows otherwise."""
    if expected == found:
        return
    lost, new = set(expected) - set(found), set(found) - set(expected)
    doubled = len(found) - len(set(found))
    raise StageError(
        f"{what}: {len(expected)} rows in, {len(found)} out: {len(lost)} lost, {len(new)} unknown, {doubled} doubled; delete the stage's folder and run again"
    )


def write_table(table: pa.Table, folder: Storage, name: str = "part-00000.parquet") -> None:
    """One Parquet file, whole or not at all."""
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    (folder / name).write_bytes(buffer.getvalue().to_pybytes())
