"""Bench `pieces`: what the driver of a pass pays for a piece, by a worker that does next to nothing."""

import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from cluster.connect import connect
from cluster.progress import Progress
from data.bounds import Size, Workers
from data.record import Record
from data.shards import Input, Output
from data.storage import Storage
from jobs.bench.memory import Peak, memory
from jobs.bench.report import Bench, Outcome, growth, print_table
from jobs.bench.rows import in_own_process
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.pipelines.parts import Parts
from jobs.pipelines.shard_source import ShardSource
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import log

OBJECT_STORE_BYTES = 512 * 2**20


class PiecesBenchSettings(Record):
    """How many pieces, and of what."""

    pieces: Size = 100_000
    """Pieces of the large run."""
    small: Size = 10_000
    """Pieces of the small run, which memory is compared with."""
    simulated: Size = 1_000_000
    """Pieces that are planned and counted without Ray."""
    pieces_per_file: Size = 64
    """Pieces of an input file, and of a part."""
    rows_per_piece: Size = 4
    """Rows of a piece, some 100 bytes each."""
    actors: Workers = 2
    """Actors of the pool."""


class StartsRecorded:
    """Gives rows as it takes them; leaves a file in `starts` each time it is constructed."""

    def __init__(self, starts: str):
        (Path(starts) / f"{os.getpid()}-{time.time_ns()}").touch()

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


def run(settings: PiecesBenchSettings) -> Outcome:
    """Wall-clock seconds with Ray already up, from the listing of the files to the last part."""
    planned = in_own_process(_simulated, settings)
    runs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, connect(settings.actors + 1, OBJECT_STORE_BYTES):
        # What a first run loads into the driver stays there: it would count for the small run alone.
        first = min(settings.small, settings.pieces_per_file)
        for name, pieces in (("first", first), ("small", settings.small), ("large", settings.pieces)):
            found = _run(settings, pieces, Path(folder) / name)
            if name != "first":
                runs[f"{pieces:,} pieces"] = found
    header = ("run", "seconds", "pieces/s", "driver peak MB", "starts of actors")
    print_table(header, [(name, *found.values()) for name, found in runs.items()])
    large = [*runs.values()][-1]
    ratios = {
        "memory_growth": growth(runs, ("driver_peak_mb",)) if len(runs) == 2 else 1.0,
        "starts_per_actor": round(large["starts"] / settings.actors, 3),
    }
    return Outcome(ratios, {"pieces_per_s": large["pieces_per_s"], "runs": runs, "simulated": planned})


def _run(settings: PiecesBenchSettings, pieces: int, folder: Path) -> dict[str, float]:
    starts = folder / "starts"
    starts.mkdir(parents=True)
    source = Storage(str(folder / "rows"))
    in_own_process(_write_rows, settings, pieces, source)
    pool = WorkerPool(num_actors=settings.actors, batch_rows=settings.rows_per_piece)
    watched, started = Peak(), time.perf_counter()
    map_rows("pieces", [source], StartsRecorded, {"starts": str(starts)}, pool, Storage(str(folder / "out")))
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "pieces_per_s": round(pieces / seconds, 1),
        "driver_peak_mb": round(watched.end().own / 2**20, 1),
        "starts": len([*starts.iterdir()]),
    }


def _write_rows(settings: PiecesBenchSettings, pieces: int, source: Storage) -> None:
    for number, first in enumerate(range(0, pieces, settings.pieces_per_file)):
        size = min(settings.pieces_per_file, pieces - first) * settings.rows_per_piece
        ids = [f"{number:06d}-{row:06d}" for row in range(size)]
        texts = [f"the text of row {i}, which nobody reads" for i in ids]
        write_table(pa.table({"id": ids, "text": texts}), source, _part(number))


def _simulated(settings: PiecesBenchSettings) -> dict[str, float]:
    """Seconds and memory to plan, describe and count pieces, without Ray and without files."""
    per_file = settings.pieces_per_file * settings.rows_per_piece
    num_files = -(-settings.simulated // settings.pieces_per_file)
    inputs = [Input(f"s3://bucket/run/rows/{_part(i)}", _part(i), per_file) for i in range(num_files)]
    watched, before, started = Peak(), memory().own, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts("simulated", inputs, Output(f"{folder}/out", "simulated"), settings.rows_per_piece, None)
        tasks = ShardSource(parts.shards, parts.missing).get_read_tasks(1)
        planned = time.perf_counter()
        shards = (row for task in tasks for table in task() for row in table.to_pylist())
        with Progress("simulated", parts.shards.num_rows, len(parts.shards)) as progress:
            for shard in shards:
                progress.add(shard["stop"] - shard["start"])
                if shard["stop"] < per_file:  # the last one would start a merge, which needs Ray
                    parts.piece_done(shard["part"])
        assert progress.rows == parts.shards.num_rows, "every row is listed once"
    megabytes = round((watched.end().own - before) / 2**20, 1)
    ended = time.perf_counter()
    log(f"{len(parts.shards):,} pieces without Ray: {ended - started:.1f} s, {megabytes} MB more than without")
    return {
        "pieces": len(parts.shards),
        "plan_seconds": round(planned - started, 2),
        "list_seconds": round(ended - planned, 2),
        "memory_mb": megabytes,
    }


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"


BENCH = Bench(
    "what a piece costs the driver: pieces per second of a trivial worker, growth of its memory, starts of actors",
    PiecesBenchSettings,
    run,
)
