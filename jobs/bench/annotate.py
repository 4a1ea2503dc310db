"""Bench `annotate`: our scorer against transformers' text-classification pipeline, text to scores, on one thread."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from actors.baselines.pipelines import PipelineScorer
from actors.modeling.settings import SmallModel
from actors.scoring.annotator import Annotator
from data.bounds import Size, Times, TokenBudget
from data.conversation import Conversation, from_table, to_table
from data.record import Record
from jobs.bench.bf16 import bf16_side
from jobs.bench.report import Bench, Outcome, cpu_seconds_by_turns, print_table, ratio_of, require_equal
from jobs.bench.rows import MEDIUM, SCHEMA, random_predictor, real_rows

EXACT = 1e-5
OURS, HALF, BATCHED, SINGLE = "ours fp32", "ours bf16", "pipeline, batches", "pipeline, one by one"


class AnnotateBenchSettings(Record):
    """What is scored, how often, with which model."""

    rows: Size = 128
    """Answers of oasst_model_eval_20k, single-turn, in file order."""
    rounds: Times = 3
    """Alternating rounds; metrics are medians over them."""
    batch_size: Size = 16
    """Texts in a batch of the batched pipeline."""
    pack_tokens: TokenBudget = 2048
    """Token budget of one packed forward of ours."""
    max_tokens: TokenBudget = 1024
    """Longer conversations keep their end, on both sides."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama."""


def run(settings: AnnotateBenchSettings) -> Outcome:
    """Tokens per CPU second of four ways to score the same texts; tokenizing counts, loading does not."""
    rows = real_rows("oasst_model_eval_20k", "prompt_output", settings.rows)
    seconds, scores, tokens = _measured(settings, rows)
    difference = {name: float(np.abs(scores[name] - scores[SINGLE]).max()) for name in seconds}
    speed = {name: round(tokens / statistics.median(s), 1) for name, s in seconds.items()}
    print_table(
        ("way", "tokens / CPU s", "ours is faster by", "largest difference"),
        [(name, speed[name], ratio_of(seconds, OURS, name), f"{difference[name]:.1e}") for name in seconds],
    )
    require_equal(difference[OURS], EXACT, f"{OURS} against {SINGLE}")
    ratios = {
        "vs_pipeline_batched": ratio_of(seconds, OURS, BATCHED),
        "vs_pipeline_single": ratio_of(seconds, OURS, SINGLE),
    }
    if HALF in seconds:
        ratios["bf16_vs_fp32"] = ratio_of(seconds, HALF, OURS)
    metrics = {"rows": len(rows), "tokens": tokens, "rounds": settings.rounds}
    return Outcome(ratios, metrics | {"tokens_per_cpu_s": speed, "largest_difference": difference})


def _measured(
    settings: AnnotateBenchSettings, rows: Sequence[Conversation]
) -> tuple[dict[str, list[float]], dict[str, np.ndarray], int]:
    """CPU seconds of each round and scores [B, A] of each way; and the tokens of all rows."""
    with tempfile.TemporaryDirectory() as folder:
        predictor = random_predictor(folder, settings.model, real_rows("oasst_model_eval_20k", "prompt_output", 2000))
        ours = {
            name: Annotator(predictor, SCHEMA, "bench", settings.pack_tokens, settings.max_tokens, dtype, 1)
            for name, dtype in {OURS: "float32", **bf16_side({HALF: "bfloat16"})}.items()
        }
        pipeline = PipelineScorer(predictor, settings.max_tokens)
        table, texts = to_table(rows, SCHEMA), pipeline.texts(rows)
        tables: dict[str, pa.Table] = {}
        scores: dict[str, np.ndarray] = {}
        ways: dict[str, Callable[[], None]] = {
            **{name: partial(_score, annotator, table, name, tables) for name, annotator in ours.items()},
            SINGLE: lambda: scores.update({SINGLE: pipeline.scores(texts, 1)}),
            BATCHED: lambda: scores.update({BATCHED: pipeline.scores(texts, settings.batch_size)}),
        }
        seconds = cpu_seconds_by_turns(ways, settings.rounds)
    scores |= {name: _scores(scored) for name, scored in tables.items()}
    return seconds, scores, sum(tables[OURS].column("tokens").to_pylist())


def _score(annotator: Annotator, table: pa.Table, name: str, tables: dict[str, pa.Table]) -> None:
    tables[name] = annotator(table)


def _scores(table: pa.Table) -> np.ndarray:
    """Of each row the scores of its last answer, [B, A]."""
    return np.array([[row.predicted[-1][name] for name in SCHEMA.names] for row in from_table(table)])


BENCH = Bench(
    "our scorer against transformers' text-classification pipeline: tokens per CPU second, one thread",
    AnnotateBenchSettings,
    run,
)
