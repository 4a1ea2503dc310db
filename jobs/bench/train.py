"""Bench `train`: our SFT against TRL's SFTTrainer on the same examples, two workers against one, ten times the rows."""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from actors.modeling.settings import SmallModel
from cluster.connect import REPOSITORY, connect
from data.bounds import Positive, Size, Times, TokenBudget, Whole
from data.record import Record
from jobs.bench.bf16 import bf16_side
from jobs.bench.environment import environment, version
from jobs.bench.report import Bench, Outcome, by_turns, print_table, ratio_of, require_equal
from jobs.bench.rows import MEDIUM, TINY, real_rows
from jobs.bench.train_scale import memory_growth, two_vs_one_worker
from jobs.bench.train_sides import Inputs, Recipe, Trained, make_inputs, train_ours, train_trl

SAME_LOSS = 0.02
OURS, HALF, PADDED = "ours fp32", "ours bf16", "TRL padded"
PACKED, SINGLE = "TRL packed", "TRL one by one"
UNPADDED = (PACKED, SINGLE)
"""TRL's ways that compute no padding. Its `padding_free` alone makes the packs of `packing`, only less full: 6 % slower
when measured."""


class TrainBenchSettings(Record):
    """What is trained, how often, with which model."""

    rows: Whole = Field(96, ge=8, le=10**9)
    """Answers of oasst_model_eval_20k to train on, in file order; those longer than max_tokens are left out."""
    held: Size = 64
    """Answers after them to judge all trained models by."""
    rounds: Times = 3
    """Alternating rounds; metrics are medians over them."""
    batch_size: Size = 8
    """Examples of an optimizer step of TRL where it does not pack; 8 is its default."""
    pack_tokens: TokenBudget = 1024
    """Token budget of one packed forward, ours and TRL's."""
    packs_per_step: Size = 2
    """Packed forwards of an optimizer step, ours and TRL's: about as many examples as batch_size."""
    max_tokens: TokenBudget = 1024
    """Longest example."""
    learning_rate: Positive = 5e-4
    """Of all steps, on both sides."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama."""
    trl: str = "trl"
    """What pip installs for the other side, e.g. trl==1.16.0 for a certain release."""
    environment: str = ".venv-trl"
    """Where; a folder of the project unless it is absolute."""
    worker_rows: Whole = Field(256, ge=8, le=10**9)
    """Answers that two workers and one are timed on, at 32 rows a step at most."""
    memory_rows: Whole = Field(20_000, ge=8, le=10**9)
    """Real rows for the growth of memory, cut to their first words."""
    times: Whole = Field(10, ge=2, le=1000)
    """How often they are repeated, under new ids, for the large run."""
    memory_model: SmallModel = TINY
    """Shape of the random-weight Llama for the growth of memory."""


def run(settings: TrainBenchSettings) -> Outcome:
    """Trained tokens per CPU second of the training process, over its steps alone: tokenized before, not validated."""
    python = environment(REPOSITORY / settings.environment, settings.trl)
    rows = real_rows("oasst_model_eval_20k", "prompt_output", max(settings.rows + settings.held, settings.worker_rows))
    with tempfile.TemporaryDirectory() as name, connect(num_cpus=4, object_store_bytes=512 * 2**20):
        folder = Path(name)
        # First, while this process, the driver, holds next to nothing.
        memory, peaks = memory_growth(settings.memory_model, settings.memory_rows, settings.times, folder / "memory")
        held = rows[settings.rows :][: settings.held]
        inputs = make_inputs(settings.model, rows[: settings.rows], held, settings.max_tokens, folder)
        found = by_turns(_ways(settings, inputs, python), settings.rounds)
        ratios, sides = _compared(found)
        workers, speeds = two_vs_one_worker(
            inputs.start, rows[: settings.worker_rows], settings.max_tokens, settings.rounds, folder / "workers"
        )
    metrics = {
        "trl": version(python, "trl"),
        "examples": inputs.num_examples,
        "tokens": inputs.tokens,
        "targets": inputs.targets,
        "rounds": settings.rounds,
    }
    return Outcome(ratios | workers | memory, metrics | {"sides": sides, "tokens_per_s": speeds, "peak_memory": peaks})


def _ways(settings: TrainBenchSettings, inputs: Inputs, python: Path) -> dict[str, Callable[[int], Trained]]:
    """Each way to train; its argument, the number of the round, is the seed."""
    recipe = Recipe(**settings.model_dump(include=set(Recipe.model_fields)))
    batching: dict[str, dict[str, Any]] = {
        PADDED: {"per_device_train_batch_size": settings.batch_size},
        PACKED: {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": settings.packs_per_step,
            "packing": True,
            "max_length": settings.pack_tokens,
        },
        SINGLE: {"per_device_train_batch_size": 1, "gradient_accumulation_steps": settings.batch_size},
    }
    return {
        OURS: partial(train_ours, inputs, recipe, "fp32"),
        **bf16_side({HALF: partial(train_ours, inputs, recipe, "bf16")}),
        **{name: partial(train_trl, inputs, recipe, arguments, python, name) for name, arguments in batching.items()},
    }


def _compared(found: dict[str, list[Trained]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Ratios, and the metrics of all sides; raises Disagreement if one of them has learned something else."""
    seconds = {name: [t.cpu_seconds for t in trained] for name, trained in found.items()}
    medians = {
        name: {key: statistics.median(getattr(t, key) for t in trained) for key in vars(trained[0])}
        for name, trained in found.items()
    }
    header = ("way", "trained tokens / CPU s", "ours is faster by", "steps", "loss of held-out answers")
    print_table(
        header,
        [
            (name, m["tokens_per_cpu_s"], ratio_of(seconds, OURS, name), m["steps"], f"{m['loss']:.4f}")
            for name, m in medians.items()
        ],
    )
    for name in found:
        require_equal(abs(medians[OURS]["loss"] - medians[name]["loss"]), SAME_LOSS, f"{OURS} against {name}")
    best = min(UNPADDED, key=lambda name: medians[name]["cpu_seconds"])
    ratios = {
        "vs_trl_padded": ratio_of(seconds, OURS, PADDED),
        "vs_trl_packed": ratio_of(seconds, OURS, best),
    }
    if HALF in seconds:
        ratios["bf16_vs_fp32"] = ratio_of(seconds, HALF, OURS)
    return ratios, {"best_of_trl": best} | medians


BENCH = Bench(
    "our training against TRL's SFTTrainer: trained tokens per CPU second; two workers against one; memory growth",
    TrainBenchSettings,
    run,
)
