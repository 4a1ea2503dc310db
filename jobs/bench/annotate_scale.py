"""Bench `annotate_scale`: the whole job against its bare kernel, two actors against one, ten times the rows."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from actors.modeling.settings import SmallModel
from actors.scoring.annotator import Annotator
from cluster.connect import connect
from data.bounds import Size, Times, TokenBudget, Whole
from data.record import Record
from data.storage import Storage
from jobs.bench.bare import bare_seconds
from jobs.bench.memory import Peak, PeakRecorded
from jobs.bench.report import Bench, Outcome, by_turns, growth, print_table, ratio_of
from jobs.bench.rows import MEDIUM, SCHEMA, SMALL, in_own_process, random_predictor, real_rows, write_repeated
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows
from jobs.runner.settings import WorkerPool

ACTORS = 2
SPARE_CPUS = 1
"""Logical, for reading and writing beside the actors. With 2, four processes that read start beside two actors and
take their cores (a fifth of the throughput of 3,000 rows)."""
OBJECT_STORE_BYTES = 512 * 2**20


class AnnotateScaleBenchSettings(Record):
    """How many rows, and with which models."""

    rows: Size = 3000
    """Real rows for the throughput of the medium model."""
    rounds: Times = 1
    """Alternating rounds of the throughput, ten minutes each; metrics are medians over them."""
    batch_rows: Size = 128
    """Rows that an actor with the medium model takes at a time. One actor waits for the other's last piece, so a piece
    should be a small part of the work."""
    scale_rows: Size = 20_000
    """Real rows for the growth of memory and time, with the small model."""
    times: Whole = Field(10, ge=2, le=1000)
    """How often they are repeated, under new ids, for the large run."""
    scale_batch_rows: Size = 256
    """Rows that an actor with the small model takes at a time."""
    rows_per_file: Size = 2000
    """Rows of each input file."""
    pack_tokens: TokenBudget = 2048
    """Token budget of one packed forward."""
    max_tokens: TokenBudget = 1024
    """Longer conversations keep their end."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama for throughput."""
    scale_model: SmallModel = SMALL
    """Shape of the random-weight Llama for growth."""


def run(settings: AnnotateScaleBenchSettings) -> Outcome:
    """Wall-clock seconds with Ray already up.

    The start of the actors and the audit count for the job; the kernel has loaded its model and rows before.
    """
    with tempfile.TemporaryDirectory() as folder, connect(ACTORS + SPARE_CPUS, OBJECT_STORE_BYTES):
        # Growth first, while this process, the driver, holds nothing but its imports.
        grown, runs = _growth(settings, Path(folder) / "growth")
        throughput, speeds = _throughput(settings, Path(folder) / "throughput")
    return Outcome(throughput | grown, {"rows_per_s": speeds, "growth": runs, "cpus": ACTORS})


def _throughput(settings: AnnotateScaleBenchSettings, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios, and rows/s of the bare kernel and of the job with one and two actors."""
    arguments, source, num_rows = _inputs(settings, settings.model, settings.rows, 1, folder)
    size = settings.batch_rows
    tables = [part.slice(start, size) for part in source.tables() for start in range(0, len(part), size)]

    def job(actors: int, number: int) -> float:
        pool = WorkerPool(num_actors=actors, batch_rows=size)
        return _job_seconds(pool, Annotator, arguments, source, folder / f"out-{actors}-{number}")

    bare, both, one = f"bare kernel, {ACTORS} processes", f"job, {ACTORS} actors", "job, 1 actor"
    ways: dict[str, Callable[[int], float]] = {
        bare: lambda _: bare_seconds(arguments, tables, ACTORS),
        both: partial(job, ACTORS),
        one: partial(job, 1),
    }
    seconds = {name: [round(s, 3) for s in rounds] for name, rounds in by_turns(ways, settings.rounds).items()}
    middle = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    speeds = {name: round(num_rows / s, 2) for name, s in middle.items()}
    print_table(("way", "seconds", "rows/s"), [(name, round(s, 1), speeds[name]) for name, s in middle.items()])
    return {"job_vs_kernel": ratio_of(seconds, both, bare), "two_vs_one_actor": ratio_of(seconds, both, one)}, speeds


def _growth(settings: AnnotateScaleBenchSettings, folder: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """How much more memory and time `times` as many rows take, and the metrics of both runs."""
    runs: dict[str, dict[str, float]] = {}
    pool = WorkerPool(num_actors=ACTORS, batch_rows=settings.scale_batch_rows)
    # What a first run loads into the driver (30 MB) stays there: it would count for the small run alone.
    first_rows = min(settings.scale_rows, settings.rows_per_file)
    arguments, source, _ = _inputs(settings, settings.scale_model, first_rows, 1, folder / "first")
    _job_seconds(pool, Annotator, arguments, source, folder / "first" / "out")
    for times in (1, settings.times):
        where = folder / str(times)
        arguments, source, num_rows = _inputs(settings, settings.scale_model, settings.scale_rows, times, where)
        peaks = where / "peaks"
        peaks.mkdir()
        watched = Peak()
        seconds = _job_seconds(pool, PeakRecorded, arguments | {"peaks": str(peaks)}, source, where / "out")
        actor = max(int(path.read_text()) for path in peaks.iterdir())
        driver = watched.end()
        sizes = {"driver_peak_mb": driver.own, "actor_peak_mb": actor, "driver_store_pages_mb": driver.shared}
        megabytes = {name: round(size / 2**20, 1) for name, size in sizes.items()}
        runs[f"{num_rows} rows"] = {"seconds": round(seconds, 1)} | megabytes
    header = ("run", "seconds", "driver peak MB", "actor peak MB", "of the object store MB")
    print_table(header, [(name, *found.values()) for name, found in runs.items()])
    return {
        "memory_growth": growth(runs, ("driver_peak_mb", "actor_peak_mb")),
        "time_growth": round(growth(runs, ("seconds",)) / settings.times, 3),
    }, runs


def _inputs(
    settings: AnnotateScaleBenchSettings, model: SmallModel, num_rows: int, times: int, folder: Path
) -> tuple[dict[str, Any], Storage, int]:
    """The arguments of an Annotator, the rows `times` times under new ids, and how many those are."""
    predictor, written = in_own_process(_write_inputs, settings, model, num_rows, times, folder)
    arguments = {
        "predictor": predictor,
        "schema": SCHEMA,
        "fingerprint": "bench",
        "pack_tokens": settings.pack_tokens,
        "max_tokens": settings.max_tokens,
        "dtype": "float32",
        "num_threads": 1,  # the actors share the machine's cores
    }
    return arguments, Storage(str(folder / "rows")), written


def _write_inputs(
    settings: AnnotateScaleBenchSettings, model: SmallModel, num_rows: int, times: int, folder: Path
) -> tuple[str, int]:
    folder.mkdir(parents=True)
    rows = real_rows("oasst_model_eval_20k", "prompt_output", num_rows)
    written = write_repeated(rows, times, settings.rows_per_file, folder)
    return random_predictor(str(folder), model, rows), written


def _job_seconds(pool: WorkerPool, worker: type[Any], arguments: dict[str, Any], source: Storage, out: Path) -> float:
    """What `jobs.annotate` does with its rows: map and audit."""
    name, target = f"annotate, {pool.num_actors} actors", Storage(str(out))
    started = time.perf_counter()
    map_rows(name, [source], worker, arguments, pool, target)
    audit(name, [source], target)
    return time.perf_counter() - started


BENCH = Bench(
    "the whole job against its bare kernel, two actors against one, ten times the rows: rows per second, peak memory",
    AnnotateScaleBenchSettings,
    run,
)
