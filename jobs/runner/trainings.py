"""The trainings of a run, as its preset sets them. Knows no model."""

from actors.training.settings import LearnerSettings
from jobs.runner.preset import Preset

STAGE_OF = {
    "base.pretrain": "base",
    "predictor.warmup": "predictor",
    "predictor.learner": "predictor",
    "policy.learner": "policy",
}
"""Path of a training's settings -> the stage that runs it; `bootstrap.learner` trains the policy of each round."""


def learners(preset: Preset) -> dict[str, LearnerSettings]:
    """Every training of the run, by the path of its settings."""
    found = {
        "base.pretrain": preset.base.pretrain,
        "predictor.warmup": preset.predictor.warmup,
        "predictor.learner": preset.predictor.learner,
        "policy.learner": preset.policy.learner,
        "bootstrap.learner": preset.bootstrap.learner if preset.bootstrap.rounds else None,
    }
    return {path: learner for path, learner in found.items() if learner}
