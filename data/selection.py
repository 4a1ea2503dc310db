"""Which of a round's rated samples are trained on: all, as in the paper, unless a setting drops some for a reason.

Knows no model and no file: samples in, a decision for each out, in their order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import model_validator

from data.attributes import AttributeSchema, Values
from data.bounds import Amount, Count, InnerShare, Size
from data.diversity import is_loop, is_refusal, shingles, words
from data.errors import UserError
from data.record import Record

PERMUTATIONS = 128
"""Of MinHash: the Jaccard similarity is estimated within .09 (one standard error at .5)."""
FINISH = "finish"
"""The column with the end of an answer: "stop", CUT_OFF or TOO_LONG."""
CUT_OFF = "length"
"""The generator's reason for the end of an answer that is as long as allowed."""
TOO_LONG = "too_long"
"""The prompt left no space for an answer: the answer is empty."""


class SelectionSettings(Record):
    """Filters of a round's samples. Answers without a word are never trained on."""

    unfinished: bool = False
    """Keep answers that were cut off at sampling.max_tokens? They would teach the model to end there."""
    max_distance: Amount | None = None
    """Drop a sample whose predicted values are farther from those requested: points of scale, mean over attributes."""
    min_quantile: dict[str, InnerShare] = {}
    """Attribute -> share of the samples with the worst predicted values to drop; only where one end is better."""
    duplicates: bool = True
    """Keep an answer that the same question had before?"""
    max_similarity: InnerShare | None = None
    """Drop an answer this similar to an earlier one of the round: Jaccard similarity of groups of three words."""
    min_words: Count = 0
    """Drop shorter answers."""
    max_words: Size | None = None
    """Drop longer answers."""
    refusals: bool = True
    """Keep answers that begin with "I'm sorry, but", "As an AI language model" and the like?"""
    loops: bool = True
    """Keep answers that repeat the same words four times in a row?"""

    @model_validator(mode="after")
    def _bounds(self) -> "SelectionSettings":
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(
                f"max_words {self.max_words} is less than min_words {self.min_words}: no answer would be left; raise it"
            )
        return self


@dataclass(frozen=True)
class Sample:
    """A sampled answer and what is known of it. `predicted` as labels would have it, calibrated."""

    question: str
    """What it answers, the whole conversation before it."""
    answer: str
    finish: str
    requested: Values
    predicted: Values

    @property
    def distance(self) -> float:
        """Mean difference of the values requested and predicted, in points of the scale; NaN if none is predicted."""
        both = [abs(self.predicted[name] - value) for name, value in self.requested.items() if name in self.predicted]
        return float(np.mean(both)) if both else float("nan")


def decisions(
    samples: Callable[[], Iterable[Sample]], settings: SelectionSettings, schema: AttributeSchema
) -> Iterator[str]:
    """For each of `samples()`, which is read twice for quantiles: why it is dropped, or "" if it is kept.

    Raises AttributeProblem or UserError for a quantile of an attribute that is unknown or has no better end.
    """
    floors = _floors(samples, settings.min_quantile, schema)
    seen: set[tuple[str, str]] = set()
    index = None if settings.max_similarity is None else _Similar(settings.max_similarity)
    for sample in samples():
        reason = _by_itself(sample, settings) or _below(sample.predicted, floors, schema)
        if not reason and not settings.duplicates:
            key = (sample.question, " ".join(sample.answer.split()))
            reason = "duplicate" if key in seen else ""
            seen.add(key)
        if not reason and index is not None and index.has_or_adds(sample.answer):
            reason = "near_duplicate"
        yield reason


def check_quantiles(min_quantile: Mapping[str, float], schema: AttributeSchema) -> None:
    """Raises AttributeProblem for an unknown attribute, UserError for one of which neither end is better."""
    for name in min_quantile:
        if schema[name].better == "neither":
            raise UserError(
                f"selection.min_quantile has {name}, of which neither end is better: "
                "which samples would be the worst? Leave it out"
            )


def _by_itself(sample: Sample, settings: SelectionSettings) -> str:
    """Why a sample is dropped, whatever the others are."""
    length = len(words(sample.answer))
    checks = {
        "unrated": not sample.predicted,
        "unfinished": not settings.unfinished and sample.finish == CUT_OFF,
        "refusal": not settings.refusals and is_refusal(sample.answer),
        "loop": not settings.loops and is_loop(sample.answer),
        "too_short": length < settings.min_words,
        "too_long": settings.max_words is not None and length > settings.max_words,
        "far_from_request": settings.max_distance is not None and sample.distance > settings.max_distance,
    }
    return next((reason for reason, holds in checks.items() if holds), "")


def _floors(
    samples: Callable[[], Iterable[Sample]], min_quantile: Mapping[str, float], schema: AttributeSchema
) -> dict[str, float]:
    """Attribute -> the value at which the worst share of all samples ends."""
    check_quantiles(min_quantile, schema)
    if not min_quantile:
        return {}
    values = np.array(
        [[s.predicted.get(name, np.nan) for name in min_quantile] for s in samples()], np.float32
    ).reshape(-1, len(min_quantile))
    shares = [q if schema[name].better == "higher" else 1 - q for name, q in min_quantile.items()]
    return {
        name: float(np.nanquantile(column, q)) for name, column, q in zip(min_quantile, values.T, shares, strict=True)
    }


def _below(predicted: Values, floors: Mapping[str, float], schema: AttributeSchema) -> str:
    for name, floor in floors.items():
        value = predicted.get(name, floor)
        if value < floor if schema[name].better == "higher" else value > floor:
            return f"worst_{name}"
    return ""


class _Similar:
    """Answers seen so far, by what they share (MinHash with locality-sensitive hashing: Broder 1997)."""

    def __init__(self, threshold: float):
        import datasketch  # it imports scipy's integrals: half a second for all who only read a preset

        self._index, self._count = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS), 0
        self._threshold, self._new_hash = threshold, partial(datasketch.MinHash, num_perm=PERMUTATIONS)
        self._hashes: dict[int, Any] = {}

    def has_or_adds(self, answer: str) -> bool:
        """Is a similar one there? If not, this one is from now on."""
        mine = self._new_hash()
        mine.update_batch([shingle.encode() for shingle in sorted(shingles(answer))])
        # The index finds candidates, some of them below the threshold.
        if any(mine.jaccard(self._hashes[found]) >= self._threshold for found in self._index.query(mine)):
            return True
        self._index.insert(self._count, mine)
        self._hashes[self._count] = mine
        self._count += 1
        return False
