"""Bench `sample`: generation through the actor pool against transformers' `generate`, one by one and in batches."""

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from actors.baselines.pipelines import GenerateSampler
from actors.generation.protocol import Sampling
from actors.generation.sampler import Sampler
from actors.generation.settings import EngineSettings
from actors.modeling.policy import Policy
from actors.modeling.settings import SmallModel
from cluster.connect import connect
from data.bounds import Size, Times, TokenBudget, Workers
from data.prompts import Prompt, prompt, prompts_table
from data.record import Record
from data.storage import Storage
from jobs.bench.report import Bench, Disagreement, Outcome, by_turns, print_table, ratio_of
from jobs.bench.rows import MEDIUM, SCHEMA, random_policy, real_rows
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import log

OURS, STATIC, SINGLE = "ours, actor pool", "generate, static batches", "generate, one by one"
TEMPERATURE, TOP_K = 1.0, 50
"""The paper's sampling (arXiv 2310.05344, section 3.4)."""


class SampleBenchSettings(Record):
    """How many questions, how often, to which model."""

    rows: Size = 64
    """Questions of oasst_model_eval_20k that have at most prompt_tokens, in file order."""
    prompt_tokens: Size = 256
    """Longer prompts are left out and counted."""
    mean_tokens: TokenBudget = 80
    """Mean length of an answer: one in so many tokens of the vocabulary ends it, as the end of a turn does in a trained
    model."""
    max_tokens: TokenBudget = 256
    """Longest answer."""
    in_flight: Workers = 16
    """Answers in flight in ours, and prompts in a static batch."""
    rounds: Times = 3
    """Alternating rounds; metrics are medians over them."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama."""


def run(settings: SampleBenchSettings) -> Outcome:
    """Tokens per CPU second of the process that generates, one thread, fp32; loading counts on no side."""
    rows = real_rows("oasst_model_eval_20k", "prompt_output", 2000)
    with tempfile.TemporaryDirectory() as folder, connect(4, None) as _:
        policy = random_policy(folder, settings.model, rows)
        ends = _end_often(policy, settings)
        baseline = GenerateSampler(policy, SCHEMA.best())
        every = [prompt("bench", r.id, r.system, r.messages[:-1], SCHEMA.best(), 0, 0) for r in rows]
        short = [p for p in every if len(baseline.ids(p)) <= settings.prompt_tokens]
        prompts = short[: settings.rows]
        write_table(prompts_table(prompts), Storage(folder) / "prompts")
        _require_equal(policy, baseline, prompts[: settings.in_flight], settings)

        def generate(number: int, batch_size: int) -> tuple[float, float]:
            return baseline.sampled(prompts, batch_size, settings.max_tokens, number, TEMPERATURE, TOP_K)

        ways: dict[str, Callable[[int], tuple[float, float]]] = {
            OURS: lambda _: _through_pool(policy, folder, settings),
            STATIC: partial(generate, batch_size=settings.in_flight),
            SINGLE: partial(generate, batch_size=1),
        }
        found = by_turns(ways, settings.rounds)
    speeds = {name: [tokens / seconds for tokens, seconds in rounds] for name, rounds in found.items()}
    speed = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    num_tokens = {name: statistics.mean(tokens for tokens, _ in rounds) for name, rounds in found.items()}
    lengths = {name: round(tokens / len(prompts), 1) for name, tokens in num_tokens.items()}
    ratios = {name: ratio_of(speeds, name, OURS) for name in speeds}
    print_table(
        ("way", "tokens / CPU s", "ours is faster by", "tokens an answer"),
        [(name, speed[name], ratios[name], lengths[name]) for name in speeds],
    )
    metrics: dict[str, object] = {"rows": len(prompts), "too_long": len(every) - len(short), "end_tokens": ends}
    metrics |= {"tokens_an_answer": lengths, "tokens_per_cpu_s": speed}
    return Outcome({"vs_single": ratios[SINGLE], "vs_static": ratios[STATIC]}, metrics)


def _end_often(policy: str, settings: SampleBenchSettings) -> int:
    """Choose how many tokens end an answer, so that answers have their mean length; returns that number."""
    path = Path(policy) / "generation_config.json"
    config = json.loads(path.read_text())
    vocabulary = settings.model.vocab_size
    drawn = np.random.default_rng(0).choice(
        np.arange(300, vocabulary), max(1, vocabulary // settings.mean_tokens), replace=False
    )
    # With those that end an answer anyway, so that all sides stop at the same tokens.
    ends = Policy.load(policy).stop_ids | {int(i) for i in drawn}
    path.write_text(json.dumps(config | {"eos_token_id": sorted(ends)}))
    return len(ends)


def _engine(settings: SampleBenchSettings) -> EngineSettings:
    return EngineSettings(kind="transformers", max_num_seqs=settings.in_flight)


def _through_pool(policy: str, folder: str, settings: SampleBenchSettings) -> tuple[float, float]:
    """Tokens, and CPU seconds of the actor."""
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=TEMPERATURE, top_k=TOP_K)
    limits = {"engine": _engine(settings), "dtype": "float32", "num_threads": 1}
    arguments = {"policy": policy, "schema": SCHEMA, "sampling": sampling} | limits
    pool = WorkerPool(num_actors=1, batch_rows=settings.rows)
    prompts, answers = Storage(folder) / "prompts", Storage(folder) / "answers"
    counters = map_rows("sample", [prompts], Sampler, arguments, pool, answers).counters
    return counters["tokens"], round(counters["cpu_seconds"], 3)


def _require_equal(
    policy: str, baseline: GenerateSampler, prompts: list[Prompt], settings: SampleBenchSettings
) -> None:
    """Raise Disagreement unless both give the same greedy answers."""
    greedy = Sampling(max_tokens=32, temperature=0.0)
    ours = Sampler(policy, SCHEMA, greedy, _engine(settings), "float32", 1)(prompts_table(prompts))
    theirs = baseline.greedy(prompts, 32)
    same = sum(row["messages"][-1]["content"] == text for row, text in zip(ours.to_pylist(), theirs, strict=True))
    log(f"greedy answers that are the same: {same} of {len(prompts)}")
    if same < len(prompts):
        raise Disagreement(
            f"only {same} of {len(prompts)} greedy answers are those of generate(): "
            "one of the two is wrong, so there is nothing to compare"
        )


BENCH = Bench(
    "offline generation through the actor pool against transformers' generate: tokens per CPU second, one thread, fp32",
    SampleBenchSettings,
    run,
)
