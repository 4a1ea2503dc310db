"""From a built module to a wrapped one: the check that packs keep conversations apart, then the task's own start.

Knows no data: it gets packs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from actors.modeling.isolation import require_isolated
from actors.modeling.train_task import TrainTask
from actors.training.checkpoint import Checkpoint
from actors.training.collectives import AgreedError
from actors.training.deepspeed_engine import TrainingEngine
from data.errors import UserError
from data.examples import Example


def start_engine(
    task: TrainTask, engine: TrainingEngine, checkpoint: Checkpoint | None, packs: Iterable[dict[str, Any]]
) -> str:
    """Check, prepare and wrap the engine's module; `packs` are this worker's of the first steps.

    Returns the line of `task.start` for the log. Raises AgreedError for a model that mixes the conversations of a pack.
    """
    if engine.settings.zero_stage < 3:
        line = _prepare(task, engine, checkpoint is None, packs)
        engine.start(checkpoint)
        return line
    # Sharded weights cannot run before DeepSpeed wraps them; jobs.runner.preset refuses what needs `task.start` then.
    engine.start(checkpoint)
    engine.validating(True)
    require_packs_isolated(task, engine, engine.engine)
    engine.validating(False)
    return ""


@torch.no_grad()
def _prepare(task: TrainTask, engine: TrainingEngine, is_new: bool, packs: Iterable[dict[str, Any]]) -> str:
    """The same for a module that DeepSpeed has not wrapped; a checkpoint replaces what `task.start` does."""
    device, module = engine.device, engine.module
    module.to(device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=engine.settings.precision == "bf16"):
        require_packs_isolated(task, engine, module)
        return task.start(module, packs) if is_new else ""


def require_packs_isolated(task: TrainTask, engine: TrainingEngine, forward: Callable[..., object]) -> None:
    """Raise AgreedError for a model that mixes the conversations of a pack.

    `forward` runs `task.inputs` as training does. Every worker takes part, and all find the same.
    """
    if not task.packing:
        return

    def run(segments: list[np.ndarray]) -> None:
        forward(**task.inputs([_example(ids_T, len(task.schema.names)) for ids_T in segments], engine.device))

    try:
        require_isolated(engine.module.model, run)
    except UserError as error:
        raise AgreedError(str(error)) from error


def _example(ids_T: np.ndarray, num_attributes: int) -> Example:
    """With a target of every kind: trained tokens, an answer's end and its labels."""
    trained_T = np.arange(len(ids_T)) >= len(ids_T) // 2
    ends_S = np.array([len(ids_T) - 1], np.int32)
    return Example(ids_T.astype(np.int32), trained_T, ends_S, np.ones((1, num_attributes), np.float32))
