"""Gather the weights of the step to save, merge adapters, and save a plain model folder. Knows no loop."""

import itertools
import json
import os
import tempfile
from collections.abc import Iterable

import torch
from transformers.core_model_loading import revert_weight_conversion

from actors.modeling.lora import merged
from actors.modeling.model_folder import cut_padding
from actors.modeling.train_task import TrainTask
from actors.training import export_plan
from actors.training.checkpoint import Checkpoint
from actors.training.collectives import agree, barrier
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.divergence import require_finite
from actors.training.export_plan import Group, Weight, planned, saved_weights
from actors.training.settings import export_dtype
from actors.training.shard_writer import ShardWriter
from actors.training.zero_shards import local_part, whole
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

    Every worker takes part; the first one writes, one file while the next is gathered, so it never holds the model
    whole. The others wait for it without a time limit. Raises Diverged for weights that are not finite.
    """
    settings, dtype = engine.settings, export_dtype(engine.settings)
    weights = list(saved_weights(engine.module, engine.module.heads, getattr(torch, dtype)))
    require_finite(parts_of(engine, weights, kept), step, rate, settings)
    files = planned(weights, export_plan.SHARD_BYTES)
    if engine.rank:
        for group in itertools.chain(*files):
            barrier()
            _gathered(engine, group, kept)
    else:
        with target.replaced() as folder:
            writer = ShardWriter(folder, len(files))
            for groups in files:
                tensors: dict[str, torch.Tensor] = {}
                for group in groups:
                    barrier()
                    tensors |= _converted(engine, group, _gathered(engine, group, kept))
                writer.add(tensors)
            writer.finish()
            _save_rest(task, engine, folder, dtype)
    barrier()


def parts_of(engine: TrainingEngine, weights: Iterable[Weight], kept: Checkpoint | None) -> dict[str, torch.Tensor]:
    """What this worker holds of the parameters that are saved; buffers may hold masks, `kept` weights were looked at
    when they were written."""
    return {
        weight.name: local_part(weight.name, weight.tensor, engine.settings.zero_stage, engine.rank)
        for weight in weights
        if isinstance(weight.tensor, torch.nn.Parameter) and not (kept and weight.trained)
    }


def _gathered(engine: TrainingEngine, group: Group, kept: Checkpoint | None) -> dict[str, torch.Tensor]:
    """The weights on the CPU of the first worker, nothing on the others; they may share the live memory.

    At ZeRO stage 3 one weight at a time is whole. Without adapters each is cast at once.
    """
    found = {}
    for weight in group:
        if kept and weight.trained:
            if engine.rank == 0:
                found[weight.name] = kept.values("weights", weight.name, 0, weight.shape.numel()).view(weight.shape)
            continue
        stage = engine.settings.zero_stage if isinstance(weight.tensor, torch.nn.Parameter) else 0
        with whole(weight.tensor, stage) as tensor:
            if engine.rank == 0:
                dtype = tensor.dtype if engine.settings.lora else weight.dtype
                # A gathered weight's memory goes when the block ends.
                found[weight.name] = tensor.to("cpu", dtype, copy=stage == 3).contiguous()
    return found


def _converted(engine: TrainingEngine, group: Group, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As they are saved: adapters merged, in the dtype of the export, in the form and under the names of the hub."""
    dtypes = {weight.name.replace(".base_layer.", "."): weight.dtype for weight in group}
    if engine.settings.lora:
        state = merged(engine.module, state)
    cast = {name.removeprefix("model."): tensor.to(dtypes[name]) for name, tensor in state.items()}
    cut_padding(engine.module.model, cast)
    ignored = set(engine.module.model._keys_to_ignore_on_save or ())
    cast = {name: tensor for name, tensor in cast.items() if name not in ignored}
    converted = revert_weight_conversion(engine.module.model, cast)
    return {name: tensor.contiguous() for name, tensor in converted.items()}


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
