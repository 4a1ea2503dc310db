"""Gather the weights of the step to save, merge adapters, and save a plain model folder. Knows no loop."""

import json
import os
import tempfile
from collections.abc import Mapping

import torch

from actors.modeling.lora import merged
from actors.modeling.train_task import TrainTask
from actors.training.checkpoint import Checkpoint
from actors.training.collectives import agree
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.divergence import unfinite_weight
from data.errors import UserError
from data.printable import printable
from data.storage import Storage, Unwritable


def require_savable(task: TrainTask, engine: TrainingEngine, output: Storage) -> None:
    """Raise AgreedError now for what would fail after the training; every worker takes part."""
    agree(None if engine.rank else _refusal(task, engine, output))


def _refusal(task: TrainTask, engine: TrainingEngine, output: Storage) -> UserError | None:
    """Save all but the weights, and write to `output`; returns what a person must change."""
    config = engine.module.model.config
    before = vars(config).copy()
    try:
        with tempfile.TemporaryDirectory() as folder:
            task.save(engine.module, {}, folder)
        probe = output / "write-test"
        probe.write_bytes(b"")
        probe.remove()
    except UserError as error:
        return error
    except Unwritable as error:
        return UserError(str(error))
    except (ValueError, TypeError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        return UserError(f"a model from {task.base} cannot be saved: {reason}; correct the files of this model")
    finally:
        vars(config).update(before)  # saving sets what only a finished model should have
    return None


def save_trained_model(
    task: TrainTask, engine: TrainingEngine, kept: Checkpoint | None, target: Storage, step: int, rate: float
) -> None:
    """Save the live weights, or with `kept` the trained ones of an earlier step, at `target`.

    Every worker takes part; the first one writes. Raises AgreedError for weights that are not finite.
    """
    state = engine.gathered(trained=False) | (_of(engine, kept) if kept else engine.gathered(trained=True))
    agree(unfinite_weight(state, dict(engine.module.named_parameters()), step, rate, engine.settings))
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
