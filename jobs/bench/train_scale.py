"""What a training keeps as it grows: speed per worker, and memory over ten times the rows. Knows no baseline."""

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from actors.modeling.settings import SmallModel
from actors.training.examples import ConversationExamples, ExampleSpec
from actors.training.settings import LearnerSettings
from data.conversation import Conversation, Message, to_table
from data.loader import Corpus
from data.storage import Storage
from jobs.bench.memory import own_peak_bytes, reset_own_peak
from jobs.bench.report import by_turns, growth, print_table, ratio_of
from jobs.bench.rows import SCHEMA, in_own_process, random_policy, real_rows, write_repeated
from jobs.bench.train_sides import fit_policy
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.tokenize import Tokenizing

PACKS_PER_STEP = 32
"""About 128 conversations of 256 tokens: the batch size that the papers train with (arXiv 2310.05344, A.3)."""
CHARACTERS = 160
"""Of each message of a growing corpus: it should have many rows, not many tokens."""
ROWS_PER_FILE = 5000


def two_vs_one_worker(
    start: str, rows: list[Conversation], max_tokens: int, rounds: int, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """How much faster two workers are than one, a core each, on the same steps; and both wall-clock tokens/s."""
    examples = Storage(str(folder / "examples"))
    maker = ConversationExamples(ExampleSpec(start, SCHEMA, "steerlm", max_tokens), answers_only=True)
    write_table(maker(to_table(rows, SCHEMA)), examples)

    def speed(workers: int, number: int) -> float:
        # Stage 1: stage 2 would send the gradients after each pack, not after each step.
        learner = LearnerSettings(
            num_workers=workers,
            zero_stage=1,
            precision="fp32",
            max_tokens=max_tokens,
            pack_tokens=max_tokens,
            packs_per_step=PACKS_PER_STEP,
        )
        return fit_policy(start, learner, Corpus.of(examples), folder / f"{workers}-workers-{number}").tokens_per_s

    speeds = by_turns({f"{workers} workers": partial(speed, workers) for workers in (1, 2)}, rounds)
    medians = {name: statistics.median(given) for name, given in speeds.items()}
    return {"two_vs_one_worker": ratio_of(speeds, "1 workers", "2 workers")}, medians


def memory_growth(
    model: SmallModel, num_rows: int, times: int, folder: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """How much more peak memory an epoch of `times` as many rows takes, in driver or worker; and both runs' metrics."""
    runs = dict(_epoch(model, num_rows, repeated, folder / str(repeated)) for repeated in (1, times))
    header = ("epoch of", "driver peak MB", "worker peak MB", "seconds")
    print_table(header, [(name, *found.values()) for name, found in runs.items()])
    return {"memory_growth": growth(runs, ("driver_peak_mb", "worker_peak_mb"))}, runs


def _epoch(model: SmallModel, num_rows: int, times: int, folder: Path) -> tuple[str, dict[str, float]]:
    """The name and the metrics of a training on the rows, `times` times under new ids."""
    start, written = in_own_process(_write, model, num_rows, times, folder)
    reset_own_peak()
    source, target = Storage(str(folder / "rows")), Storage(str(folder / "examples"))
    arguments = {"spec": ExampleSpec(start, SCHEMA, "steerlm", 1024)}
    learner = LearnerSettings(precision="fp32", zero_stage=0, pack_tokens=2048, packs_per_step=PACKS_PER_STEP)
    with Tokenizing("memory", [source], ConversationExamples, arguments, target, "bench").meanwhile(
        learner
    ) as examples:
        metrics = fit_policy(start, learner, examples, folder / f"memory-{times}")
    assert metrics.examples == written, f"{written:,} rows were written, {metrics.examples:,} trained on"
    return f"{written} rows", {
        "driver_peak_mb": round(own_peak_bytes() / 2**20, 1),
        "worker_peak_mb": round(metrics.peak_memory_bytes / 2**20, 1),
        "seconds": metrics.train_seconds,
    }


def _write(model: SmallModel, num_rows: int, times: int, folder: Path) -> tuple[str, int]:
    """A policy, and the rows `times` times under new ids as Parquet files; returns its folder and their number."""
    folder.mkdir(parents=True)
    rows = [
        replace(r, messages=tuple(_cut(m) for m in r.messages))
        for r in real_rows("oasst_model_eval_20k", "prompt_output", num_rows)
    ]
    return random_policy(str(folder), model, rows), write_repeated(rows, times, ROWS_PER_FILE, folder)


def _cut(message: Message) -> Message:
    return replace(message, content=message.content[:CHARACTERS])
