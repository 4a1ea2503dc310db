"""What runs on the device in a process of its own: annotation, sampling, matrix products. Each returns plain numbers.

A share of the peak is that of a plain forward's operations: 2 for each weight and token, and attention's (PaLM,
arXiv 2204.02311, appendix B), over what matrix products alone reach in the same process.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete
from actors.generation.settings import EngineKind, EngineSettings
from actors.generation.vllm_installed import is_installed
from actors.kernels.devices import own_device
from actors.modeling.self_check import greedy_gap
from actors.scoring.annotator import Annotator
from actors.scoring.predictor import Predictor
from actors.training.metrics import peak_flops, peak_memory_bytes
from data.attributes import shipped
from data.conversation import Conversation, to_table
from data.lab import Lab, LabSettings
from jobs.gpu_checks.checks import Skipped
from jobs.gpu_checks.sizes import LlamaSize
from jobs.gpu_checks.target import Target

SCHEMA = shipped("lab")
WARM_UP_ROWS, GREEDY_ROWS = 32, 4
GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Speed:
    """Of one process."""

    tokens: int
    tokens_per_s: float
    share_of_peak: float
    peak_bytes: int
    greedy_gap: float | None = None
    """See `actors.modeling.self_check.greedy_gap`; None = not asked."""

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.tokens_per_s:,.0f} tokens/s, {self.share_of_peak:.1%} of peak"


@dataclass(frozen=True)
class SamplingWork:
    """How much is sampled."""

    num_answers: int
    max_tokens: int
    max_num_seqs: int
    memory_share: float = 0.5
    """vLLM's, of a GPU."""
    checks_greedy: bool = True


def require_engine(kind: EngineKind) -> None:
    """Raise Skipped for an engine that is not installed."""
    if kind == "vllm" and not is_installed():
        raise Skipped("vLLM is not installed")


def lab_rows(number: int) -> list[Conversation]:
    """The first rows of the synthetic world."""
    return list(itertools.islice(Lab(LabSettings(num_rows=10**7)).rows(), number))


def used_device(folder: str) -> str:
    """Where a predictor goes that nobody told where: "cpu" or "cuda"."""
    return str(Predictor.load(folder).device.type)


def peaks(precisions: Sequence[str]) -> dict[str, float]:
    """Precision -> operations a second of a large matrix product."""
    return {precision: _peak(precision) for precision in precisions}


def _peak(precision: str) -> float:
    return peak_flops(own_device(), precision)


def _memory_bytes() -> int:
    """Of this process, at most."""
    return peak_memory_bytes(own_device())


def forward_flops(size: LlamaSize, tokens: int, reached: int, squares: float) -> float:
    """Operations of a forward over `tokens`, `reached` of which reach the vocabulary; `squares`: of the lengths."""
    attention = size.shape.num_layers * size.shape.hidden_size
    return 2 * size.body * tokens + 2 * size.embeddings * reached + 2 * attention * squares


def annotation(
    folder: str, size: LlamaSize, rows: Sequence[Conversation], target: Target, pack_tokens: int, max_tokens: int
) -> Speed:
    """The annotator's forward over tokenized rows, by a predictor with the policy's weights and random heads."""
    annotator = Annotator(folder, SCHEMA, "check", pack_tokens, max_tokens, target.dtype, 1)
    table = annotator.input(to_table(rows, SCHEMA))
    annotator(table[:WARM_UP_ROWS])
    started = time.perf_counter()
    lengths = annotator(table).column("tokens").to_pylist()
    seconds = time.perf_counter() - started
    tokens, squares = sum(lengths), sum(float(n) ** 2 for n in lengths)
    share = forward_flops(size, tokens, 0, squares) / seconds / _peak(target.precision)
    return Speed(tokens, tokens / seconds, share, _memory_bytes())


def sampling(
    kind: EngineKind,
    folder: str,
    size: LlamaSize,
    rows: Sequence[Conversation],
    target: Target,
    work: SamplingWork,
) -> Speed:
    """Answers of an engine, prompts included; and how greedy its greedy answers are."""
    context = 2 * max(512, work.max_tokens)
    settings = EngineSettings(
        kind=kind,
        max_num_seqs=work.max_num_seqs,
        max_model_len=context,
        memory_share=work.memory_share if kind == "vllm" else None,
    )
    text, engine = load_engine(settings, folder, target.dtype)
    prompts = [text.prompt(row.system, row.messages[:1], SCHEMA.best()) for row in rows[: work.num_answers]]
    try:
        greedy = Sampling(max_tokens=GREEDY_TOKENS, temperature=0.0)
        first = prompts[:GREEDY_ROWS]
        answers = [ids for ids, _ in complete(engine, [(ids, greedy) for ids in first])]
        drawn = Sampling(max_tokens=work.max_tokens, temperature=1.0, top_k=50)
        started = time.perf_counter()
        found = complete(engine, [(ids, replace(drawn, seed=seed)) for seed, ids in enumerate(prompts)])
        seconds = time.perf_counter() - started
        peak_bytes = _memory_bytes()
    finally:
        engine.close()
    lengths = [len(ids) for ids, _ in found]
    total = [len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True)]
    flops = forward_flops(size, sum(total), sum(lengths), sum(float(n) ** 2 for n in total))
    share = flops / seconds / _peak(target.precision)
    pairs = list(zip(first, answers, strict=True))
    gap = _gap(folder, target, pairs) if work.checks_greedy else None
    return Speed(sum(lengths), sum(lengths) / seconds, share, peak_bytes, gap)


def _gap(folder: str, target: Target, pairs: list[tuple[list[int], list[int]]]) -> float:
    answered: list[tuple[Any, Any]] = [(prompt, answer) for prompt, answer in pairs if answer]
    return greedy_gap(folder, target.torch_device, answered)
