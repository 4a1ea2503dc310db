"""Bench `prepare`: stage `rows` on the cluster against one loop, two tasks against one, many rows, and `datasets`."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import Field

from cluster.connect import REPOSITORY, connect
from cluster.settings.load import load
from data.bounds import Size, Times, Whole
from data.record import Record
from jobs.bench.memory import Peak
from jobs.bench.prepare_sides import FORMAT, SOURCE, Written, datasets_map, digests_of, one_loop, write_lines
from jobs.bench.report import Bench, Disagreement, Outcome, by_turns, growth, print_table, ratio_of
from jobs.bench.rows import in_own_process
from jobs.pipelines.rows import write_rows
from jobs.runner.preset import Preset
from jobs.runner.stage import Run

TASKS = 2
OBJECT_STORE_BYTES = 512 * 2**20
SERIAL, ONE, TWO, DATASETS = "one loop", "stage, 1 task", f"stage, {TASKS} tasks", f"datasets, {TASKS} processes"


class PrepareBenchSettings(Record):
    """How many rows, in which splits."""

    rows: Size = 50_000
    """Rows for the throughput: answers of oasst_model_eval_20k, repeated under new prompts; every twentieth comes
    twice."""
    rounds: Times = 3
    """Alternating rounds; metrics are medians over them."""
    split_bytes: Size = 4 * 2**20
    """Bytes that a task reads."""
    rows_per_file: Size = 2000
    """Rows of each file that is written."""
    times: Whole = Field(20, ge=2, le=1000)
    """How often as many rows the large run has, for the growth of the driver's memory."""


def run(settings: PrepareBenchSettings) -> Outcome:
    """Wall-clock seconds from JSON lines on disk to Parquet, with Ray already up, or with all modules imported."""
    with tempfile.TemporaryDirectory() as name, connect(TASKS, OBJECT_STORE_BYTES):
        folder = Path(name)
        lines = {folder / "lines.jsonl": settings.rows, folder / "large.jsonl": settings.rows * settings.times}
        in_own_process(write_lines, lines)
        # Growth first, while this process, the driver, holds nothing but its imports.
        grown, runs = _growth(settings, lines, folder)
        ratios, speeds = _throughput(settings, next(iter(lines)), folder)
    return Outcome(ratios | grown, {"rows_per_s": speeds, "growth": runs, "cpus": TASKS})


def _throughput(settings: PrepareBenchSettings, lines: Path, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios, and rows/s of each way."""
    ways: dict[str, Callable[[int], Written]] = {
        SERIAL: lambda number: in_own_process(one_loop, lines, folder / f"loop-{number}", settings.rows_per_file),
        ONE: partial(_stage, settings, lines, folder, 1),
        TWO: partial(_stage, settings, lines, folder, TASKS),
        DATASETS: lambda number: in_own_process(datasets_map, lines, folder / f"datasets-{number}", TASKS),
    }
    found = by_turns(ways, settings.rounds)
    _require_same(found)
    seconds = {name: [written.seconds for written in rounds] for name, rounds in found.items()}
    middle = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    speeds = {name: round(found[name][0].read / s, 1) for name, s in middle.items()}
    print_table(("way", "seconds", "rows/s"), [(name, round(s, 1), speeds[name]) for name, s in middle.items()])
    return {
        "vs_serial": ratio_of(seconds, ONE, SERIAL),
        "two_vs_one_worker": ratio_of(seconds, TWO, ONE),
        "vs_datasets_map": ratio_of(seconds, TWO, DATASETS),
    }, speeds


def _require_same(found: dict[str, list[Written]]) -> None:
    """The stage writes the very ids of the loop, in its order; a plain map keeps what comes twice."""
    written = [(name, w.folder) for name in (SERIAL, ONE, TWO) for w in found[name]]
    digests = in_own_process(digests_of, [folder for _, folder in written])
    for (name, _), digest in zip(written, digests, strict=True):
        if digest != digests[0]:
            raise Disagreement(f"{name} wrote other rows than {SERIAL}: one of them is wrong; nothing to compare")
    if {w.rows for w in found[DATASETS]} != {w.read for w in found[SERIAL]}:
        raise Disagreement(f"{DATASETS} wrote other rows than {SERIAL} read; there is nothing to compare")


def _growth(
    settings: PrepareBenchSettings, lines: dict[Path, int], folder: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """How much more memory the driver takes for `times` as many rows."""
    runs: dict[str, dict[str, float]] = {}
    # What a first run loads into the driver stays there: it would count for the small run alone.
    for number, file in enumerate([next(iter(lines)), *lines]):
        watched = Peak()
        written = _stage(settings, file, folder, TASKS, number, "growth")
        peak = round(watched.end().own / 2**20, 1)
        if number:
            speed = round(written.read / written.seconds, 1)
            runs[f"{lines[file]} rows"] = {"seconds": written.seconds, "driver_peak_mb": peak, "rows_per_s": speed}
    header = ("run", "seconds", "driver peak MB", "rows/s")
    print_table(header, [(name, *found.values()) for name, found in runs.items()])
    return {"memory_growth": growth(runs, ("driver_peak_mb",))}, runs


def _stage(
    settings: PrepareBenchSettings, lines: Path, folder: Path, tasks: int, number: int, name: str = "stage"
) -> Written:
    """What `jobs.prepare` does, without its manifest."""
    source = json.dumps([{"name": SOURCE, "format": FORMAT, "uri": str(lines)}])
    words = {
        "storage": str(folder),
        "run": f"{name}-{tasks}-{number}",
        "rows.sources": source,
        "rows.rows_per_file": str(settings.rows_per_file),
        "rows.split_bytes": str(settings.split_bytes),
        "rows.num_tasks": str(tasks),
        "rows.max_rejected": "1",
    }
    preset = load(
        Preset, str(REPOSITORY / "jobs" / "presets" / "demo.yaml"), [f"{key}={value}" for key, value in words.items()]
    )
    run = Run(preset)
    started = time.perf_counter()
    metrics = write_rows(run, run.folder("rows"))
    seconds = time.perf_counter() - started
    written = (run.folder("rows") / "rows").path
    return Written(round(seconds, 3), int(metrics.counts[SOURCE]["read"]), metrics.rows, written)


BENCH = Bench(
    "stage rows on the cluster against one loop and a map of `datasets`, two tasks against one: rows per second",
    PrepareBenchSettings,
    run,
)
