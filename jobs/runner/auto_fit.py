"""`fit: auto` in a preset: settings chosen before anything reads them, so that fingerprints are of the chosen ones."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel

from actors.training.auto_fit import fitted
from data.errors import UserError
from jobs.runner.preset import Preset
from jobs.runner.shapes import Shapes
from jobs.runner.trainings import learners

P = TypeVar("P", bound=Preset)
R = TypeVar("R", bound=BaseModel)


def with_fits(preset: P) -> tuple[P, tuple[str, ...]]:
    """The preset with the settings that `fit: auto` stands for, and a line for each choice.

    Raises UserError if nothing fits, or the model's config cannot be read.
    """
    wanting = {path: learner for path, learner in learners(preset).items() if learner.fit == "auto"}
    if not wanting:
        return preset, ()
    shapes, lines, chosen = Shapes.of(preset), [], {}
    for path, learner in wanting.items():
        shape, has_logits = shapes.of_training(path, preset)
        if shape is None or not shape.layers:
            raise UserError(
                f"{path}.fit is auto, but config.json of its model cannot be read here; set {path}.fit to off, or the "
                "model to a folder or a URI"
            )
        choice = fitted(path, learner, shape, has_logits, _needs_whole_weights(path, preset))
        chosen[path] = choice.learner
        lines.append(choice.reason)
    return _replaced(preset, chosen), tuple(lines)


def _needs_whole_weights(path: str, preset: Preset) -> bool:
    """As `PredictorSettings` requires: what reads weights outside the engine's forward."""
    predictor = preset.predictor
    reads = bool(predictor.ridge_init or predictor.lm_loss_weight or predictor.heads)
    return path == "predictor.warmup" or (path == "predictor.learner" and reads)


def _replaced(record: R, values: Mapping[str, object]) -> R:
    """The record with the values at these dotted paths."""
    for path, value in values.items():
        record = _with(record, path.split("."), value)
    return record


def _with(record: R, path: list[str], value: object) -> R:
    name, *rest = path
    return record.model_copy(update={name: _with(getattr(record, name), rest, value) if rest else value})
