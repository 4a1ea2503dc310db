"""Bench `annotate_scale`: the whole job against its bare kernel, two actors against one, and ten times the rows in the same memory."""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import Field

from actors.modeling.tiny_llama import SmallModel
from actors.scoring.annotator import Annotator
from cluster.connect import connect
from data.conversation import to_table
from data.record import Record
from data.storage import Storage
from jobs.bench.bare import bare_seconds
from jobs.bench.memory import Peak, PeakRecorded
from jobs.bench.report import Bench, Outcome, by_turns, print_table, ratio_of
from jobs.bench.rows import MEDIUM, SCHEMA, SMALL, random_predictor, real_rows
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import log

ACTORS = 2
SPARE_CPUS = 1
"""Logical, for reading and writing beside the actors. With two, four processes that read would start beside two actors and take their cores (a fifth
of the throughput of 3,000 rows)."""
OBJECT_STORE_BYTES = 512 * 2**20


class Settings(Record):
    """How many rows, and with which models."""

    rows: int = Field(3000, ge=1)
    """Real rows for the throughput of the medium model."""
    rounds: int = Field(1, ge=1)
    """Alternating rounds of the throughput, ten minutes each; figures are medians over them."""
    batch_rows: int = Field(128, ge=1)
    """Rows that an actor with the medium model gets at a time. The last piece keeps one actor waiting for the other: it should be a small part of the work."""
    scale_rows: int = Field(20_000, ge=1)
    """Real rows for the growth of memory and time, with the small model."""
    times: int = Field(10, ge=2)
    """How often they are repeated, under new ids, for the large run."""
    scale_batch_rows: int = Field(256, ge=1)
    """Rows that an actor with the small model gets at a time."""
    rows_per_file: int = Field(2000, ge=1)
    """Rows of each input file."""
    pack_tokens: int = Field(2048, ge=2)
    """Token budget of one packed forward."""
    max_tokens: int = Field(1024, ge=2)
    """Longer conversations keep their end."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama for throughput."""
    scale_model: SmallModel = SMALL
    """Shape of the random-weight Llama for growth."""


def run(settings: Settings) -> Outcome:
    """Wall-clock seconds, Ray already up: an actor's start and the audit count for the job, the kernel has loaded its model and rows before."""
    with tempfile.TemporaryDirectory() as folder, connect(ACTORS + SPARE_CPUS, OBJECT_STORE_BYTES):
        # Growth first, while this process, the driver, holds nothing but its imports.
        growth, runs = _growth(settings, Path(folder) / "growth")
        throughput, speeds = _throughput(settings, Path(folder) / "throughput")
    return Outcome(throughput | growth, {"rows_per_s": speeds, "growth": runs, "cpus": ACTORS})


def _throughput(settings: Settings, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios, and rows/s of the bare kernel and of the job with one and two actors."""
    predictor, source, num_rows = _inputs(settings, settings.model, settings.rows, 1, folder)
    arguments = _arguments(settings, predictor)
    tables = [
        part.slice(start, settings.batch_rows)
        for part in source.tables()
        for start in range(0, len(part), settings.batch_rows)
    ]

    def job(actors: int, number: int) -> float:
        return _job_seconds(
            WorkerPool(num_actors=actors, batch_rows=settings.batch_rows),
            Annotator,
            arguments,
            source,
            folder / f"out-{actors}-{number}",
        )

    bare, both, one = f"bare kernel, {ACTORS} processes", f"job, {ACTORS} actors", "job, 1 actor"
    ways: dict[str, Callable[[int], float]] = {
        bare: lambda _: bare_seconds(arguments, tables, ACTORS),
        both: partial(job, ACTORS),
        one: partial(job, 1),
    }
    seconds = {name: [round(s, 1) for s in rounds] for name, rounds in by_turns(ways, settings.rounds).items()}
    middle = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    speeds = {name: round(num_rows / s, 2) for name, s in middle.items()}
    print_table(("way", "seconds", "rows/s"), [(name, round(s, 1), speeds[name]) for name, s in middle.items()])
    return {"job_vs_kernel": ratio_of(seconds, both, bare), "two_vs_one_actor": ratio_of(seconds, both, one)}, speeds


def _growth(settings: Settings, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """How much more memory and time `times` as many rows take, and the figures of both runs."""
    runs: dict[str, dict[str, float]] = {}
    # What a first run loads into the driver (30 MB) stays there: it would count for the small run alone.
    predictor, source, _ = _inputs(
        settings, settings.scale_model, min(settings.scale_rows, settings.rows_per_file), 1, folder / "first"
    )
    pool = WorkerPool(num_actors=ACTORS, batch_rows=settings.scale_batch_rows)
    _job_seconds(pool, Annotator, _arguments(settings, predictor), source, folder / "first" / "out")
    for times in (1, settings.times):
        where = folder / str(times)
        predictor, source, num_rows = _inputs(settings, settings.scale_model, settings.scale_rows, times, where)
        peaks = where / "peaks"
        peaks.mkdir()
        watched = Peak()
        seconds = _job_seconds(
            pool, PeakRecorded, _arguments(settings, predictor) | {"peaks": str(peaks)}, source, where / "out"
        )
        actor = max(int(path.read_text()) for path in peaks.iterdir())
        driver = watched.end()
        megabytes = {"driver_peak_mb": driver.own, "actor_peak_mb": actor, "driver_store_pages_mb": driver.shared}
        runs[f"{num_rows} rows"] = {"seconds": round(seconds, 1)} | {
            name: round(size / 2**20, 1) for name, size in megabytes.items()
        }
    print_table(
        ("run", "seconds", "driver peak MB", "actor peak MB", "of the object store MB"),
        [(name, *found.values()) for name, found in runs.items()],
    )
    small, large = runs.values()
    memory = max(large[name] / small[name] for name in ("driver_peak_mb", "actor_peak_mb"))
    return {
        "memory_growth": round(memory, 3),
        "time_growth": round(large["seconds"] / small["seconds"] / settings.times, 3),
    }, runs


def _inputs(settings: Settings, model: SmallModel, num_rows: int, times: int, folder: Path) -> tuple[str, Storage, int]:
    """A predictor, the rows `times` times under new ids as Parquet files, and how many those are; made in a process of their own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        predictor, written = apart.submit(_write_inputs, settings, model, num_rows, times, folder).result()
    log(f"{written:,} rows written")
    return predictor, Storage(str(folder / "rows")), written


def _write_inputs(settings: Settings, model: SmallModel, num_rows: int, times: int, folder: Path) -> tuple[str, int]:
    folder.mkdir(parents=True)
    rows = real_rows("oasst_model_eval_20k", "prompt_output", num_rows)
    for time_ in range(times):
        for start in range(0, len(rows), settings.rows_per_file):
            part = [replace(r, id=f"{r.id}-{time_}") for r in rows[start : start + settings.rows_per_file]]
            write_table(to_table(part, SCHEMA), Storage(str(folder / "rows")), f"part-{time_:03d}-{start:07d}.parquet")
    return random_predictor(str(folder), model, rows), len(rows) * times


def _arguments(settings: Settings, predictor: str) -> dict[str, Any]:
    """What an Annotator is given; a thread each, because the machine's cores are shared out among them."""
    limits = {
        "pack_tokens": settings.pack_tokens,
        "max_tokens": settings.max_tokens,
        "dtype": "float32",
        "num_threads": 1,
    }
    return {"predictor": predictor, "schema": SCHEMA, "fingerprint": "bench", **limits}


def _job_seconds(pool: WorkerPool, worker: type[Any], arguments: dict[str, Any], source: Storage, out: Path) -> float:
    """What `jobs.annotate` does with its rows: map and audit."""
    name, target = f"annotate, {pool.num_actors} actors", Storage(str(out))
    started = time.perf_counter()
    map_rows(name, [source], worker, arguments, pool, target)
    audit(name, [source], target)
    return time.perf_counter() - started


BENCH = Bench(
    "the whole job against its bare kernel, two actors against one, ten times the rows: rows per second, peak memory",
    Settings,
    run,
)
