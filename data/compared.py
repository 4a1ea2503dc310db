"""Two models' answers to the same questions, and what a predictor says of both. Knows no model and no run."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from data.attributes import Values
from data.diversity import words
from data.measures import pairwise_accuracy
from data.quality_metrics import PairAccuracy
from data.record import Record

T = TypeVar("T")


class ComparedPair(Record):
    """A question, the answers of the policy and of the base model, and the predictor's score of both."""

    id: str
    question: str
    policy: str
    base: str
    policy_score: float | None
    base_score: float | None
    policy_values: dict[str, float] = {}
    base_values: dict[str, float] = {}


def compared_pair(id: str, question: str, answers: Sequence[tuple[str, Values]], weights: Values) -> ComparedPair:
    """`answers`: the policy's text and values, then the base model's; `weights`: attribute -> weight in the score."""
    (ours, our_values), (theirs, their_values) = answers
    return ComparedPair(
        id=id,
        question=question,
        policy=ours,
        base=theirs,
        policy_score=_score(our_values, weights),
        base_score=_score(their_values, weights),
        policy_values={name: round(float(value), 4) for name, value in our_values.items()},
        base_values={name: round(float(value), 4) for name, value in their_values.items()},
    )


def shares(pairs: Sequence[ComparedPair], names: Sequence[str]) -> dict[str, Any]:
    """`preferred`, `longer`, `each_attribute` (of `names`), `means` and `unscored` of PreferenceMetrics.

    A pair with an answer that has no score is left out everywhere.
    """
    scored = [pair for pair in pairs if pair.policy_score is not None and pair.base_score is not None]
    lengths = [[len(words(text)) for text in side] for side in zip(*((p.policy, p.base) for p in scored), strict=True)]
    values = {
        name: [[getattr(pair, f"{side}_values").get(name, math.nan) for pair in scored] for side in ("policy", "base")]
        for name in names
    }
    scores = [[pair.policy_score for pair in scored], [pair.base_score for pair in scored]]
    return {
        "preferred": _share(scores),
        "longer": _share(lengths or [[], []]),
        "each_attribute": {name: _share(columns) for name, columns in values.items()},
        "means": {
            side: {name: _mean(columns[i]) for name, columns in values.items() if not np.isnan(columns[i]).all()}
            | ({"words": _mean(lengths[i])} if scored else {})
            for i, side in enumerate(("policy", "base"))
        },
        "unscored": len(pairs) - len(scored),
    }


def spread_evenly(things: Sequence[T], most: int) -> list[T]:
    """At most so many of the things, evenly from the first on: a file of questions is sorted by category."""
    return [things[i * len(things) // most] for i in range(most)] if len(things) > most else list(things)


def _score(values: Values, weights: Values) -> float | None:
    needed = [name for name, weight in weights.items() if weight]
    if any(math.isnan(values.get(name, math.nan)) for name in needed):
        return None
    return round(float(sum(weights[name] * values[name] for name in needed)), 4)


def _share(sides: Sequence[Sequence[Any]]) -> PairAccuracy:
    found = pairwise_accuracy(sides[0], sides[1])
    rounded: dict[str, Any] = {name: round(v, 4) if isinstance(v, float) else v for name, v in found.items()}
    return PairAccuracy(**rounded)


def _mean(values: Sequence[float]) -> float:
    return round(float(np.nanmean(values)), 4)
