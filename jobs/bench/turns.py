"""Bench `turns`: all answers of a conversation from one forward, against one forward per prefix; one packed kernel."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np

from actors.modeling.settings import SmallModel
from actors.modeling.tokenizer import encoder
from actors.scoring.predictor import Predictor
from data.bounds import Size, Times, TokenBudget
from data.conversation import Conversation
from data.packing import best_fit
from data.record import Record
from data.tokens import Segment, Tokens, tokenize
from jobs.bench.report import Bench, Outcome, cpu_seconds_by_turns, print_table, ratio_of, require_equal
from jobs.bench.rows import MEDIUM, random_predictor, real_rows
from jobs.runner.stage import log

EXACT = 1e-5
MANY = 4
"""Answers from which on a conversation counts for the ratio."""
SETS = {"hh_rlhf_harmless_test": "hh_rlhf", "oasst1_en_labelled": "oasst_messages"}


class TurnsBenchSettings(Record):
    """What is scored, how often, with which model."""

    rows: Size = 24
    """Conversations for each number of answers (1, 2, 3, 4 or more), half from each set as far as both have them."""
    rounds: Times = 3
    """Alternating rounds; metrics are medians over them."""
    pack_tokens: TokenBudget = 2048
    """Token budget of one packed forward; conversations that are longer are left out and counted."""
    model: SmallModel = MEDIUM
    """Shape of the random-weight Llama."""


def run(settings: TurnsBenchSettings) -> Outcome:
    """CPU seconds of both ways by number of answers, on one thread; tokenized before the clock starts."""
    sets = {name: real_rows(name, format) for name, format in SETS.items()}
    with tempfile.TemporaryDirectory() as folder:
        every = [r for rows in sets.values() for r in rows]
        predictor = Predictor.load(random_predictor(folder, settings.model, every), num_threads=1)
    measured = {kind: _measured(predictor, rows, settings) for kind, rows in _kinds(sets, settings.rows).items()}
    columns = ("rows", "answers", "tokens", "vs_prefixes")
    print_table(
        ("answers", "conversations", "all answers", "tokens", "one forward is faster by", "largest difference"),
        [(kind, *(m[name] for name in columns), f"{gap:.1e}") for kind, (m, gap) in measured.items()],
    )
    worst = max(gap for _, gap in measured.values())
    require_equal(worst, EXACT, "one forward against a forward per prefix")
    found_many = {name: sum(r.num_answers >= MANY for r in rows) for name, rows in sets.items()}
    log(f"conversations with {MANY} or more answers: {', '.join(f'{n} in {name}' for name, n in found_many.items())}")
    metrics = {kind: m for kind, (m, _) in measured.items()}
    return Outcome(
        {"vs_prefixes": metrics[f"{MANY}+"]["vs_prefixes"]},
        {"by_answers": metrics, "with_4_or_more": found_many, "largest_difference": worst},
    )


def _measured(
    predictor: Predictor, rows: Sequence[Conversation], settings: TurnsBenchSettings
) -> tuple[dict[str, float], float]:
    """Metrics of the conversations of one kind, and the largest difference of the two ways' scores."""
    encode = encoder(predictor.format.tokenizer)
    whole = [tokenize(predictor.format.template.pieces(r.system, r.messages, ()), encode) for r in rows]
    kept = [t for t in whole if len(t) <= settings.pack_tokens]
    scores: dict[str, np.ndarray] = {}

    def score(way: str, segments: Sequence[Segment]) -> None:
        scores[way] = _scored(predictor, segments, settings.pack_tokens)

    segments = {"one forward": _at_once(kept), "prefixes": _prefixes(kept)}
    seconds = cpu_seconds_by_turns({way: partial(score, way, s) for way, s in segments.items()}, settings.rounds)
    metrics = {
        "rows": len(kept),
        "too_long": len(rows) - len(kept),
        "answers": sum(len(t.turn_ends_S) for t in kept),
        "tokens": sum(map(len, kept)),
        "vs_prefixes": ratio_of(seconds, "one forward", "prefixes"),
    }
    return metrics, float(np.abs(scores["one forward"] - scores["prefixes"]).max())


def _kinds(sets: dict[str, list[Conversation]], limit: int) -> dict[str, list[Conversation]]:
    """Conversations by number of answers, "1" to "4+", taken from the sets by turns."""
    kinds: dict[str, dict[str, list[Conversation]]] = {
        kind: defaultdict(list) for kind in (*map(str, range(1, MANY)), f"{MANY}+")
    }
    for name, rows in sets.items():
        for row in rows:
            kinds[str(row.num_answers) if row.num_answers < MANY else f"{MANY}+"][name].append(row)
    return {kind: _by_turns(list(found.values()), limit) for kind, found in kinds.items()}


def _by_turns(lists: Sequence[list[Conversation]], limit: int) -> list[Conversation]:
    """Micro-example: [a, b, c], [x] -> a x b c."""
    longest = max(map(len, lists))
    return [rows[i] for i in range(longest) for rows in lists if i < len(rows)][:limit]


def _at_once(tokens: Sequence[Tokens]) -> list[Segment]:
    return [Segment(t.ids_T, t.turn_ends_S, t.turn_starts_S) for t in tokens]


def _prefixes(tokens: Sequence[Tokens]) -> list[Segment]:
    return [
        Segment(t.ids_T[: end + 1], np.array([end]), np.array([start]))
        for t in tokens
        for start, end in zip(t.turn_starts_S, t.turn_ends_S, strict=True)
    ]


def _scored(predictor: Predictor, segments: Sequence[Segment], pack_tokens: int) -> np.ndarray:
    """Scores of all reads of all segments, in order, [S, A]."""
    scores: dict[int, np.ndarray] = {}
    for members in best_fit([len(s) for s in segments], pack_tokens):
        scored = predictor.score([segments[i].ids_T for i in members], [segments[i].reads_S for i in members])
        scores.update(zip(members, scored, strict=True))
    return np.concatenate([scores[i] for i in range(len(segments))])


BENCH = Bench(
    "all answers of a conversation in one forward against one forward per prefix: CPU seconds, the same packed kernel",
    TurnsBenchSettings,
    run,
)
