"""Held-out answers with their own labels and with those of others, to see whether a policy reads its labels."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from actors.training.chosen_labels import chosen
from data.conversation import Conversation, from_table
from data.examples import Example, Split
from data.label_use import LabelProbe, Labels, probes
from data.stage_metrics import TrainingMetrics
from data.storage import Storage
from data.template import Unrenderable
from data.tokens import OverLong
from jobs.runner.stage import log

if TYPE_CHECKING:
    from actors.training.examples import PolicyExamples

NO_VALUES_SA = np.zeros((0, 0), np.float32)


def label_probes(maker: "PolicyExamples", rows: Sequence[Storage], split: Split, wanted: int) -> list[LabelProbe]:
    """Probes of the first `wanted` held-out conversations of `rows` that have labels."""
    found: list[tuple[Conversation, Labels]] = []
    for row in _held_out(rows, split) if wanted else ():
        labels = chosen(row, maker.labels, maker.calibration)
        if any(labels):
            found.append((row, labels))
        if len(found) == wanted:
            break

    def example(number: int, labels: Labels) -> Example | None:
        try:
            tokens = maker.tokens(found[number][0], labels)
        except (OverLong, Unrenderable):
            return None
        return Example(tokens.ids_T, tokens.trained_T, tokens.turn_ends_S, NO_VALUES_SA)

    return probes([labels for _, labels in found], maker.spec.schema, maker.seed, example)


def _held_out(rows: Sequence[Storage], split: Split) -> Iterator[Conversation]:
    for folder in rows:
        for table in folder.tables():
            yield from (row for row in from_table(table) if split.validates(row.group))


def log_label_use(what: str, training: TrainingMetrics) -> None:
    """A line for each attribute: is it read?"""
    for name, use in training.label_use.items():
        read = "reads it" if use.low > 0 else "does not seem to read it"
        log(
            f"{what}: {name}: the model {read}: with labels of other answers a token of {use.conversations} held-out "
            f"answers costs {use.nats:+.4f} nats ({use.low:+.4f} to {use.high:+.4f})"
        )
