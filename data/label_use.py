"""Does a policy read its labels? Its loss on held-out answers with their own labels, against labels of other answers.

A model that ignores an attribute loses nothing when that attribute's labels are shuffled among answers. Knows no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from data.attributes import AttributeSchema, Values
from data.examples import Example
from data.record import Record

NUM_RESAMPLES = 2000
Labels = Sequence[Values]
"""One entry for each answer of a conversation."""


class LabelUse(Record):
    """What the labels of one attribute are worth to a policy."""

    nats: float
    """How much higher the loss of a token is with labels of other answers: 0 = the attribute is not read."""
    low: float
    high: float
    """The ends of the 95 % interval, over conversations."""
    conversations: int
    """Held-out ones whose labels the shuffle changed."""


@dataclass(frozen=True)
class LabelProbe:
    """A held-out conversation with its own labels, and once for each attribute whose labels the shuffle changed."""

    own: Example
    shuffled: Mapping[str, Example] = field(default_factory=dict)


def shuffled_labels(labels: Sequence[Labels], name: str, schema: AttributeSchema, seed: int) -> list[Labels | None]:
    """The conversations' `labels` with those of attribute `name` dealt anew among all answers that have one.

    None for a conversation whose labels read as before: they are equal when rounded.
    """
    places = [(c, a) for c, answers in enumerate(labels) for a, values in enumerate(answers) if name in values]
    dealt = [labels[c][a][name] for c, a in places]
    Random(f"{seed}/{name}").shuffle(dealt)
    found: list[list[dict[str, float]]] = [[dict(values) for values in answers] for answers in labels]
    changed = set()
    for (c, a), value in zip(places, dealt, strict=True):
        if schema[name].rounded(value) != schema[name].rounded(found[c][a][name]):
            changed.add(c)
        found[c][a][name] = value
    return [answers if c in changed else None for c, answers in enumerate(found)]


def probes(
    labels: Sequence[Labels],
    schema: AttributeSchema,
    seed: int,
    example: Callable[[int, Labels], Example | None],
) -> list[LabelProbe]:
    """A probe for each conversation; `example` makes one of its number and labels, or None if it does not fit."""
    others = {name: shuffled_labels(labels, name, schema, seed) for name in schema.names}
    found = []
    for number, own in enumerate(labels):
        if (plain := example(number, own)) is None:
            continue
        variants = {name: example(number, changed) for name in schema.names if (changed := others[name][number])}
        # The turn whose label changed may have been cut off the front.
        shuffled = {name: v for name, v in variants.items() if v and not np.array_equal(v.ids_T, plain.ids_T)}
        found.append(LabelProbe(plain, shuffled))
    return found


def label_use(differences: Sequence[float], tokens: Sequence[float], seed: int = 0) -> LabelUse:
    """From each conversation's loss with shuffled labels less that with its own, in nats, and its trained tokens.

    The interval resamples conversations (percentile bootstrap).
    """
    difference_N, tokens_N = np.asarray(differences, float), np.asarray(tokens, float)
    drawn_RN = np.random.default_rng(seed).integers(len(difference_N), size=(NUM_RESAMPLES, len(difference_N)))
    means_R = difference_N[drawn_RN].sum(1) / tokens_N[drawn_RN].sum(1)
    low, high = np.percentile(means_R, [2.5, 97.5])
    mean = difference_N.sum() / tokens_N.sum()
    return LabelUse(
        nats=round(float(mean), 5),
        low=round(float(low), 5),
        high=round(float(high), 5),
        conversations=len(difference_N),
    )
