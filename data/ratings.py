"""Rated answers as numbers: one line per answer with people's values, the predictor's, and the truth if it is known.

The texts are left out, so that any corpus fits: 4 bytes a number. Knows no model and no metric (`data.measures`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from data.attributes import Values
from data.conversation import Conversation
from data.examples import bucket

Truth = Callable[[Conversation], Sequence[Values]]
"""The true values of every answer of a conversation; only the synthetic world has them."""


@dataclass(frozen=True)
class Ratings:
    """`N` rated answers by `A` attributes, NaN where not rated."""

    human_NA: np.ndarray
    predicted_NA: np.ndarray
    truth_NA: np.ndarray
    length_N: np.ndarray
    """Characters of the answer."""
    bucket_N: np.ndarray
    """The bucket of the conversation's group: a predictor that held it out has not seen the answer."""

    def __len__(self) -> int:
        return len(self.length_N)

    def training_means_NA(self, held_out: "Ratings") -> np.ndarray:
        """For each answer of `held_out`, the mean human value of the answers here in the *other* buckets.

        That is the prediction of a predictor that learned nothing.
        """
        means_NA = np.full(held_out.human_NA.shape, np.nan)
        for number in np.unique(held_out.bucket_N):
            others_NA = self.human_NA[self.bucket_N != number]
            count_A = (~np.isnan(others_NA)).sum(axis=0)
            mean_A = np.nansum(others_NA, axis=0, dtype=float) / np.where(count_A, count_A, np.nan)
            means_NA[held_out.bucket_N == number] = mean_A
        return means_NA


def ratings_of(rows: Iterable[Conversation], names: Sequence[str], buckets: int, truth: Truth | None = None) -> Ratings:
    """The numbers of all rated answers among `rows`; `buckets` is how many the groups are split into, 0 = one."""
    human, predicted, true, length, buckets_N = [], [], [], [], []
    for row in rows:
        none: tuple[Values, ...] = ({},) * row.num_answers
        answers = [m.content for m in row.messages if m.role == "assistant"]
        true_values = truth(row) if truth and any(row.human) else none
        for rated, scored, really, answer in zip(row.human, row.predicted or none, true_values, answers, strict=True):
            if rated:
                human.append(_line(rated, names))
                predicted.append(_line(scored, names))
                true.append(_line(really, names))
                length.append(len(answer))
                buckets_N.append(bucket(row.group, buckets or 1))
    human_NA, predicted_NA, truth_NA = (
        np.array(lines, np.float32).reshape(-1, len(names)) for lines in (human, predicted, true)
    )
    return Ratings(human_NA, predicted_NA, truth_NA, np.array(length, np.float32), np.array(buckets_N, np.int32))


def _line(values: Values, names: Sequence[str]) -> list[float]:
    return [values.get(name, np.nan) for name in names]


def joined(parts: Iterable[Ratings], num_attributes: int) -> Ratings:
    """All answers of all parts; of no parts, none."""
    parts = [ratings_of((), [""] * num_attributes, 0), *parts]
    return Ratings(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Ratings)))
