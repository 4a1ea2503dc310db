"""Which of a row's values become the labels of its answers: people's, predicted ones, or none. Loads no model."""

from actors.training.settings import LabelSource
from data.attributes import Values
from data.calibration import Calibration
from data.conversation import Conversation


def chosen(row: Conversation, labels: LabelSource, calibration: Calibration) -> tuple[Values, ...]:
    """The values each answer is conditioned on, predicted ones calibrated; "human_else_predicted" is per attribute.

    "none" = plain fine-tuning, no label lines. A policy's samples have predicted values only, which always count.
    """
    if labels == "none":
        return ({},) * row.num_answers
    human = row.human or ({},) * row.num_answers
    predicted = tuple(calibration(v) for v in row.predicted or ({},) * row.num_answers)
    if labels == "human_else_predicted":
        return tuple({**p, **h} for p, h in zip(predicted, human, strict=True))
    return tuple(human if labels == "human" and not any(row.requested) else predicted)
