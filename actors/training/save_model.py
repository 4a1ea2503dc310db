"""Try before a training what could fail after it, and save a plain model folder at its end. Knows no loop."""

import json
import os
import tempfile
from collections.abc import Iterable

import torch

from actors.modeling.train_task import TrainTask
from actors.training import export_plan
from actors.training.checkpoint import Checkpoint
from actors.training.collectives import agree, agree_all
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.divergence import require_finite
from actors.training.export_plan import Weight, planned, saved_weights
from actors.training.settings import export_dtype
from actors.training.sharded_export import Export
from actors.training.weight_parts import WeightParts
from actors.training.zero_shards import local_part
from data.errors import UserError
from data.lease import Fence
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
    task: TrainTask,
    engine: TrainingEngine,
    kept: Checkpoint | None,
    target: Storage,
    step: int,
    rate: float,
    fence: Fence | None = None,
) -> None:
    """Save the live weights, or with `kept` the trained ones of an earlier step, at `target`.

    Every worker takes part and writes files of its own; none holds the model whole, and none waits with a time limit
    for slow storage. Raises Diverged for weights that are not finite, and what one worker cannot write on all of them.
    """
    dtype, allowed = export_dtype(engine.settings), fence.require if fence else lambda: None
    weights = list(saved_weights(engine.module, engine.module.heads, getattr(torch, dtype)))
    require_finite(parts_of(engine, weights, kept), step, rate, engine.settings)
    export = Export(WeightParts(engine, kept), target, planned(weights, export_plan.SHARD_BYTES), allowed)
    export.write()
    agree_all(None if engine.rank else _finish(task, engine, export, dtype))


def _finish(task: TrainTask, engine: TrainingEngine, export: Export, dtype: str) -> Exception | None:
    """Save all but the weights, which are there, and publish the model; or say why that is not possible."""
    try:
        _save_rest(task, engine, export.folder, dtype)
        export.publish()
    except Exception as error:  # for all workers
        return error
    return None


def parts_of(engine: TrainingEngine, weights: Iterable[Weight], kept: Checkpoint | None) -> dict[str, torch.Tensor]:
    """What this worker holds of the parameters that are saved; buffers may hold masks, `kept` weights were looked at
    when they were written."""
    return {
        weight.name: local_part(weight.name, weight.tensor, engine.settings.zero_stage, engine.rank)
        for weight in weights
        if isinstance(weight.tensor, torch.nn.Parameter) and not (kept and weight.trained)
    }


def _save_rest(task: TrainTask, engine: TrainingEngine, folder: Storage, dtype: str) -> None:
    """All but the weights."""
    with tempfile.TemporaryDirectory() as local:
        task.save(engine.module, {}, local)
        _set_dtype(os.path.join(local, "config.json"), dtype)
        for name in Storage(local).names():
            if not name.endswith(".safetensors"):
                (folder / name).put(os.path.join(local, name))


def _set_dtype(path: str, dtype: str) -> None:
    """transformers writes the dtype of the live model, not of the weights that are saved."""
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | {"dtype": dtype}, file, indent=2)
