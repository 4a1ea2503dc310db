"""Metrics from verdicts: games from both orders, win rates, position bias, single ratings, percent of a reference.

Knows no judge and no file. A game counts where both orders have a verdict: a win holds in both, anything else is a tie
(arXiv 2306.05685, section 3.4). Matches without a verdict are counted separately.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.benchmarks import QuestionId
from data.elo import Game, interval, resampled
from data.measures import share_interval
from data.verdicts import UNPARSABLE, Verdict, Winner

Metrics = dict[str, Any]
OTHER: dict[Winner, Winner] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True)
class PairwiseComparison:
    """Two answers to one question: who was better with `one` shown first, and with `other` first; None = no verdict."""

    question_id: QuestionId
    category: str
    turn: int
    one: str
    other: str
    as_first: Winner | None
    """"first" means `one`."""
    as_second: Winner | None
    """Seen from the same side: "first" means `one`, though it stood in second place."""

    @property
    def score(self) -> float | None:
        """1, 0.5 or 0 for `one`; None unless both orders have a verdict."""
        if self.as_first is None or self.as_second is None:
            return None
        return {"first": 1.0, "second": 0.0, "tie": 0.5}[self.as_first] if self.as_first == self.as_second else 0.5


def latest(verdicts: Iterable[Verdict]) -> tuple[list[Verdict], int]:
    """Each match once, the last verdict of it if there are several, and how many were repeated."""
    found, total = {}, 0
    for verdict in verdicts:
        total += 1
        found[verdict.kind, verdict.question_id, verdict.turn, verdict.models, verdict.judge] = verdict
    return list(found.values()), total - len(found)


def models_of(verdicts: Iterable[Verdict]) -> list[str]:
    """In the order in which they appear."""
    return list(dict.fromkeys(model for verdict in verdicts for model in verdict.models))


def pairwise_comparisons(verdicts: Iterable[Verdict], models: Sequence[str]) -> list[PairwiseComparison]:
    """Both orders of a match as one comparison, `one` being the model that `models` names first."""
    place = {model: i for i, model in enumerate(models)}
    orders: dict[tuple[Any, ...], dict[bool, Verdict]] = {}
    for verdict in verdicts:
        if verdict.kind == "pair":
            one, other = sorted(verdict.models, key=place.__getitem__)
            orders.setdefault((verdict.question_id, verdict.turn, one, other, verdict.judge), {})[
                verdict.models[0] == one
            ] = verdict
    found = []
    for (question, turn, one, other, _), both in orders.items():
        straight, swapped = (both[key].winner if key in both else None for key in (True, False))
        category = next(iter(both.values())).category
        found.append(
            PairwiseComparison(question, category, turn, one, other, straight, OTHER[swapped] if swapped else None)
        )
    return found


def games(found: Iterable[PairwiseComparison]) -> list[Game]:
    """The input of ratings."""
    return [Game(d.question_id, d.one, d.other, score) for d in found if (score := d.score) is not None]


def counters(found: Sequence[PairwiseComparison]) -> Metrics:
    """Wins, ties and losses of `one`, and the win rate, in which a tie counts half.

    Its 95 % interval (Wilson) counts questions, not games: two turns of one question go together.
    """
    scores = [(d.question_id, score) for d in found if (score := d.score) is not None]
    counts = Counter(score for _, score in scores)
    metrics: Metrics = {
        "win": counts[1.0],
        "tie": counts[0.5],
        "loss": counts[0.0],
        "without_verdict": len(found) - len(scores),
    }
    if not scores:
        return metrics | {"win_rate": None, "interval": None}
    rate = sum(score for _, score in scores) / len(scores)
    low, high = share_interval(rate, len({question for question, _ in scores}))
    return metrics | {"win_rate": round(rate, 4), "interval": [round(low, 4), round(high, 4)]}


def by(field: str, found: Sequence[PairwiseComparison]) -> Metrics:
    """The counters of each category, or of each turn."""
    names = list(dict.fromkeys(getattr(d, field) for d in found))
    return {str(name): counters([d for d in found if getattr(d, field) == name]) for name in names}


def position_bias(found: Sequence[PairwiseComparison]) -> Metrics:
    """The judge's position bias, over comparisons with both verdicts.

    How often the verdict `changed` with the order, how often it `reversed` (another winner), and the share of verdicts
    with a winner that went to the first place (no bias: 0.5).
    """
    both = [d for d in found if d.score is not None]
    pairs = [(d.as_first, d.as_second) for d in both]
    changed, turned = sum(a != b for a, b in pairs), sum({a, b} == {"first", "second"} for a, b in pairs)
    places = [d.as_first for d in found] + [OTHER[d.as_second] if d.as_second else None for d in found]
    decided = [place for place in places if place in ("first", "second")]
    first = decided.count("first")
    metrics: Metrics = {
        "comparisons": len(both),
        "changed": _share(changed, len(both)),
        "reversed": _share(turned, len(both)),
        "decided": len(decided),
    }
    interval = [round(v, 4) for v in share_interval(first / len(decided), len(decided))] if decided else None
    return metrics | {"first_place": _share(first, len(decided)), "first_place_interval": interval}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


@dataclass(frozen=True)
class Rated:
    """A model's answer and the judge's rating of it."""

    question_id: QuestionId
    category: str
    turn: int
    rating: float


def rated(verdicts: Iterable[Verdict], model: str) -> list[Rated]:
    return [
        Rated(v.question_id, v.category, v.turn, v.rating)
        for v in verdicts
        if v.kind == "single" and v.models == (model,) and v.rating is not None
    ]


def mean_rating(found: Sequence[Rated], resamples: int, seed: int) -> Metrics:
    """Mean rating with its interval, by turn and by category."""
    if not found:
        return {"n": 0, "mean": None, "interval": None, "turns": {}, "categories": {}}
    values = np.array([r.rating for r in found])
    drawn = resampled([r.question_id for r in found], resamples, np.random.default_rng(seed))

    def means(name: str) -> Metrics:
        keys = dict.fromkeys(getattr(r, name) for r in found)
        return {
            str(key): round(float(np.mean([r.rating for r in found if getattr(r, name) == key])), 3) for key in keys
        }

    spread = interval(np.array([values[d].mean() for d in drawn]), 3)
    return {
        "n": len(found),
        "mean": round(float(values.mean()), 3),
        "interval": spread,
        "turns": means("turn"),
        "categories": means("category"),
    }


def percent(ours: Sequence[Rated], reference: Sequence[Rated], resamples: int, seed: int) -> Metrics:
    """The sum of our ratings in percent of the reference's, over answers where both have one; by category, too.

    As in Vicuna, and SteerLM (arXiv 2310.05344, table 1).
    """
    theirs = {(r.question_id, r.turn): r.rating for r in reference}
    common = [(r, theirs[r.question_id, r.turn]) for r in ours if (r.question_id, r.turn) in theirs]
    if not common:
        return {"n": 0, "percent": None, "interval": None, "categories": {}}
    values = np.array([(r.rating, other) for r, other in common])
    drawn = resampled([r.question_id for r, _ in common], resamples, np.random.default_rng(seed))
    categories = {}
    for name in dict.fromkeys(r.category for r, _ in common):
        categories[name] = _percent(np.array([(r.rating, other) for r, other in common if r.category == name]))
    spread = interval(np.array([_percent(values[d]) for d in drawn]), 2)
    return {"n": len(common), "percent": _percent(values), "interval": spread, "categories": categories}


def _percent(values_N2: np.ndarray) -> float:
    ours, theirs = values_N2.sum(0)
    return round(100 * float(ours) / float(theirs), 2)


def problems(verdicts: Sequence[Verdict]) -> Metrics:
    """How many verdicts there are, how many replies hold none, and how many requests failed, by their problem."""
    reasons = Counter(v.problem for v in verdicts if v.problem)
    unparsable = reasons.pop(UNPARSABLE, 0)
    return {
        "judged": len(verdicts),
        "verdicts": sum(not v.problem for v in verdicts),
        "unparsable": unparsable,
        "errors": dict(reasons.most_common()),
    }
