"""Gather the weights of the step to save, merge adapters, and save a plain model folder. Knows no loop."""

import json
import os
import tempfile
from collections.abc import Mapping

import torch

from actors.modeling.lora import merged
from actors.modeling.train_task import TrainTask
from actors.training.checkpointer import Checkpoint
from actors.training.deepspeed_engine import TrainingEngine
from data.storage import Storage


def save_trained_model(task: TrainTask, engine: TrainingEngine, kept: Checkpoint | None, target: Storage) -> None:
    """Save the live weights, or with `kept` the trained ones of an earlier step, at `target`.

    Every worker takes part; the first one writes.
    """
    state = engine.gathered(trained=False) | (_of(engine, kept) if kept else engine.gathered(trained=True))
    if engine.rank:
        return
    if engine.settings.lora:
        state = merged(engine.module, state)
    dtype = engine.settings.export
    with tempfile.TemporaryDirectory() as folder:
        task.save(engine.module, cast(state, getattr(torch, dtype)), folder)
        _set_dtype(os.path.join(folder, "config.json"), dtype)
        target.upload(folder)


def cast(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`state` in another dtype, but for whole numbers; tied weights stay one tensor, so that they are saved once."""
    cast_once: dict[tuple[int, torch.Size], torch.Tensor] = {}
    return {
        name: cast_once.setdefault((v.data_ptr(), v.shape), v.to(dtype)) if v.is_floating_point() else v
        for name, v in state.items()
    }


def _set_dtype(path: str, dtype: str) -> None:
    """transformers writes the dtype of the live model, not of the weights that it saves."""
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | {"dtype": dtype}, file, indent=2)


def _of(engine: TrainingEngine, kept: Checkpoint) -> dict[str, torch.Tensor]:
    if engine.rank:
        return {}
    shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in engine.module.named_parameters()}
    return {
        name: kept.values("weights", name, 0, kept.size("weights", name)).view(shapes[name])
        for name in kept.names("weights")
    }
