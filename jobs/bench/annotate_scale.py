"""Bench `annotate_scale`: the whole job against its bare kernel, two actors against one, and ten times the rows in the same memory."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from actors.annotator import Annotator
from actors.base import SmallModel
from cluster.connect import connect
from data.conversation import Conversation, to_table
from data.record import Record
from data.storage import Storage
from jobs.audit import audit
from jobs.bench.bare import bare_seconds
from jobs.bench.memory import PeakRecorded, own_peak_bytes, reset_own_peak
from jobs.bench.report import Bench, Outcome, print_table
from jobs.bench.rows import MEDIUM, SCHEMA, SMALL, random_predictor, real_rows
from jobs.pipelines import map_rows, write_table
from jobs.preset import WorkerPool
from jobs.stage import say

ACTORS = 2
SPARE_CPUS = 2
"""Logical, for reading and writing beside the actors."""
OBJECT_STORE_BYTES = 512 * 2**20


class Settings(Record):
    """How many rows, and with which models."""

    rows: int = Field(4000, ge=1)
    """Real rows for the throughput of the medium model."""
    scale_rows: int = Field(20_000, ge=1)
    """Real rows for the growth of memory and time, with the small model."""
    times: int = Field(10, ge=2)
    """How often they are repeated, under new ids, for the large run."""
    batch_rows: int = Field(256, ge=1)
    """Rows that an actor gets at a time."""
    rows_per_file: int = Field(2000, ge=1)
    """Rows of each input file."""
    row_tokens: int = Field(2048, ge=2)
    """Token budget of one packed forward."""
    max_tokens: int = Field(1024, ge=2)
    """Longer conversations keep their end."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama for throughput."""
    scale_model: SmallModel = SMALL
    """Shape of the random-weight Llama for growth."""


def run(settings: Settings) -> Outcome:
    """Wall-clock seconds, Ray already up: an actor's start and the audit count for the job, the kernel has loaded its model and rows before."""
    rows = real_rows("oasst_model_eval_20k", "prompt_output", max(settings.rows, settings.scale_rows))
    with tempfile.TemporaryDirectory() as folder, connect(ACTORS + SPARE_CPUS, OBJECT_STORE_BYTES):
        throughput, speeds = _throughput(settings, rows[: settings.rows], Path(folder) / "throughput")
        growth, runs = _growth(settings, rows[: settings.scale_rows], Path(folder) / "growth")
    return Outcome(throughput | growth, {"rows_per_s": speeds, "growth": runs, "rows": min(settings.rows, len(rows)), "cpus": ACTORS})


def _throughput(settings: Settings, rows: Sequence[Conversation], folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios, and rows/s of the bare kernel and of the job with one and two actors."""
    predictor, source = _inputs(settings, settings.model, rows, 1, folder)
    arguments = _arguments(settings, predictor)
    tables = [to_table(rows[i : i + settings.batch_rows], SCHEMA) for i in range(0, len(rows), settings.batch_rows)]
    seconds = {f"bare kernel, {ACTORS} processes": bare_seconds(arguments, tables, ACTORS)}
    for actors in (ACTORS, 1):
        seconds[f"job, {actors} actors"] = _job_seconds(settings, Annotator, arguments, actors, source, folder / f"out-{actors}")
    bare, both, one = seconds.values()
    speeds = {name: round(len(rows) / s, 2) for name, s in seconds.items()}
    print_table(("way", "seconds", "rows/s"), [(name, round(s, 1), speeds[name]) for name, s in seconds.items()])
    return {"job_vs_kernel": round(bare / both, 3), "two_vs_one_actor": round(one / both, 3)}, speeds


def _growth(settings: Settings, rows: Sequence[Conversation], folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """How much more memory and time `times` as many rows take, and the figures of both runs."""
    runs: dict[str, dict[str, float]] = {}
    for times in (1, settings.times):
        where = folder / str(times)
        predictor, source = _inputs(settings, settings.scale_model, rows, times, where)
        peaks = where / "peaks"
        peaks.mkdir()
        reset_own_peak()
        seconds = _job_seconds(settings, PeakRecorded, _arguments(settings, predictor) | {"peaks": str(peaks)}, ACTORS, source, where / "out")
        actor = max(int(path.read_text()) for path in peaks.iterdir())
        runs[f"{len(rows) * times} rows"] = {"seconds": round(seconds, 1), "driver_peak_mb": own_peak_bytes() / 2**20, "actor_peak_mb": actor / 2**20}
    print_table(("run", "seconds", "driver peak MB", "actor peak MB"), [(name, *(round(v, 1) for v in found.values())) for name, found in runs.items()])
    small, large = runs.values()
    memory = max(large[name] / small[name] for name in ("driver_peak_mb", "actor_peak_mb"))
    return {"memory_growth": round(memory, 3), "time_growth": round(large["seconds"] / small["seconds"] / settings.times, 3)}, runs


def _inputs(settings: Settings, model: SmallModel, rows: Sequence[Conversation], times: int, folder: Path) -> tuple[str, Storage]:
    """A predictor, and the rows `times` times under new ids as Parquet files."""
    folder.mkdir(parents=True)
    predictor = random_predictor(str(folder), model, rows)
    source = Storage(str(folder / "rows"))
    for time_ in range(times):
        for start in range(0, len(rows), settings.rows_per_file):
            part = [replace(r, id=f"{r.id}-{time_}") for r in rows[start : start + settings.rows_per_file]]
            write_table(to_table(part, SCHEMA), source, f"part-{time_:03d}-{start:07d}.parquet")
    say(f"{len(rows) * times:,} rows written")
    return predictor, source


def _arguments(settings: Settings, predictor: str) -> dict[str, Any]:
    """What an Annotator is given; a thread each, because the machine's cores are shared out among them."""
    limits = {"row_tokens": settings.row_tokens, "max_tokens": settings.max_tokens, "dtype": "float32", "num_threads": 1}
    return {"predictor": predictor, "schema": SCHEMA, "fingerprint": "bench", **limits}


def _job_seconds(settings: Settings, worker: type[Any], arguments: dict[str, Any], actors: int, source: Storage, out: Path) -> float:
    """What `jobs.annotate` does with its rows: map and audit."""
    pool, target = WorkerPool(num_actors=actors, batch_rows=settings.batch_rows), Storage(str(out))
    started = time.perf_counter()
    map_rows(f"annotate, {actors} actors", [source], worker, arguments, pool, target)
    audit(f"annotate, {actors} actors", [source], target)
    return time.perf_counter() - started


BENCH = Bench("the whole job against its bare kernel, two actors against one, ten times the rows: rows per second, peak memory", Settings, run)
