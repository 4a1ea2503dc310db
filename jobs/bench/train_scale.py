"""What a training keeps when it grows: its speed for each worker, and its memory over ten times the rows. Knows no peer."""

import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from actors.modeling.policy import PolicyTask
from actors.modeling.tiny_llama import SmallModel
from actors.training.examples import ConversationExamples, ExampleSpec
from actors.training.settings import LearnerSettings
from data.conversation import Conversation, Message, to_table
from data.loader import Corpus
from data.storage import Storage
from jobs.bench.memory import own_peak_bytes, reset_own_peak
from jobs.bench.report import by_turns, print_table
from jobs.bench.rows import SCHEMA, random_policy, real_rows
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.tokenize import Tokenizing
from jobs.runner.stage import log

ROWS_PER_STEP = 32
"""About 128 conversations of 256 tokens: the batch size that the papers train with (arXiv 2310.05344, A.3)."""
CHARACTERS = 160
"""Of each message of a growing corpus: it is rows that are to be many, not tokens."""
ROWS_PER_FILE = 5000


def two_vs_one_worker(
    start: str, rows: list[Conversation], max_tokens: int, rounds: int, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """How much faster two workers are than one, a core each, on the same steps; and the tokens a second of both, wall clock."""
    examples = Storage(str(folder / "examples"))
    maker = ConversationExamples(ExampleSpec(start, SCHEMA, "steerlm", max_tokens), answers_only=True)
    write_table(maker(to_table(rows, SCHEMA)), examples)

    def speed(workers: int, number: int) -> float:
        # Stage 1: stage 2 would send the gradients after each row, not after each step.
        learner = LearnerSettings(
            num_workers=workers,
            zero_stage=1,
            precision="fp32",
            max_tokens=max_tokens,
            pack_tokens=max_tokens,
            packs_per_step=ROWS_PER_STEP,
        )
        what = f"{workers}-workers-{number}"
        metrics = fit(
            what, PolicyTask(start, SCHEMA, "steerlm"), learner, Corpus.of(examples), Storage(str(folder / what))
        )
        return metrics.tokens_per_s

    found = by_turns({f"{workers} workers": partial(speed, workers) for workers in (1, 2)}, rounds)
    one, two = found.values()
    ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
    return {"two_vs_one_worker": round(ratio, 3)}, {name: statistics.median(given) for name, given in found.items()}


def memory_growth(
    model: SmallModel, num_rows: int, times: int, folder: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """How much more memory driver and worker have at most if an epoch has `times` as many rows; and the figures of both runs."""
    runs = {}
    for repeated in (1, times):
        where = folder / str(repeated)
        # In a process of its own, so that the rows never were in this one.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            start, written = apart.submit(_write, model, num_rows, repeated, where).result()
        reset_own_peak()
        spec = ExampleSpec(start, SCHEMA, "steerlm", 1024)
        tokenizing = Tokenizing(
            "memory",
            [Storage(str(where / "rows"))],
            ConversationExamples,
            {"spec": spec},
            Storage(str(where / "examples")),
            "bench",
        )
        learner = LearnerSettings(precision="fp32", zero_stage=0, pack_tokens=2048, packs_per_step=ROWS_PER_STEP)
        with tokenizing.meanwhile(learner) as examples:
            metrics = fit(
                f"memory-{repeated}",
                PolicyTask(start, SCHEMA, "steerlm"),
                learner,
                examples,
                Storage(str(where / "out")),
            )
        assert metrics.examples == written, f"{written:,} rows were written, {metrics.examples:,} trained on"
        runs[f"{written} rows"] = {
            "driver_peak_mb": round(own_peak_bytes() / 2**20, 1),
            "worker_peak_mb": round(metrics.peak_memory_bytes / 2**20, 1),
            "seconds": metrics.train_seconds,
        }
    print_table(
        ("epoch of", "driver peak MB", "worker peak MB", "seconds"),
        [(name, *found.values()) for name, found in runs.items()],
    )
    small, large = runs.values()
    return {
        "memory_growth": round(max(large[name] / small[name] for name in ("driver_peak_mb", "worker_peak_mb")), 3)
    }, runs


def _write(model: SmallModel, num_rows: int, times: int, folder: Path) -> tuple[str, int]:
    """A policy, and the rows `times` times under new ids as Parquet files; returns where it is and how many those are."""
    folder.mkdir(parents=True)
    rows = [
        replace(r, messages=tuple(_cut(m) for m in r.messages))
        for r in real_rows("oasst_model_eval_20k", "prompt_output", num_rows)
    ]
    target = Storage(str(folder / "rows"))
    for repeated in range(times):
        for first in range(0, len(rows), ROWS_PER_FILE):
            part = [replace(r, id=f"{r.id}-{repeated}") for r in rows[first : first + ROWS_PER_FILE]]
            write_table(to_table(part, SCHEMA), target, f"part-{repeated:03d}-{first:07d}.parquet")
    log(f"{len(rows) * times:,} rows written")
    return random_policy(str(folder), model, rows), len(rows) * times


def _cut(message: Message) -> Message:
    return replace(message, content=message.content[:CHARACTERS])
