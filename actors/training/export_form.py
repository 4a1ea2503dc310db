"""In which form weights are saved: adapters merged, padding cut off, in the dtype, form and names of the hub.

The form of a file is known from shapes alone, before any value is there, and is the same on every worker.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers.core_model_loading import revert_weight_conversion

from actors.modeling.lora import merged
from actors.modeling.model_folder import cut_padding
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.export_plan import ADAPTER, Group, Weight


@dataclass(frozen=True)
class Unit:
    """Weights that are turned into what is saved together."""

    weights: Group
    saved: Mapping[str, torch.Tensor]
    """Name in the file -> a tensor without values."""
    streams: bool
    """The only weight is saved as it is, or its first rows: any part of it can be written without the others."""


def units(engine: TrainingEngine, group: Group) -> list[Unit]:
    """A group, in units as small as its form allows: a large layer needs not be in memory at once."""
    without_values = {weight.name: torch.empty(weight.shape, dtype=weight.dtype, device="meta") for weight in group}
    plain = _plain(engine, group, without_values)
    saved = revert_weight_conversion(engine.module.model, dict(plain))
    names = {id(tensor): name for name, tensor in saved.items()}
    found, together = list[Unit](), Group()
    for weight in group:
        cast = plain.get(weight.name.removeprefix("model."))
        if cast is not None and id(cast) in names:
            found.append(Unit([weight], {names[id(cast)]: cast}, streams=True))
        elif cast is not None or ADAPTER.search(weight.name):
            together.append(weight)
    if all(id(tensor) in names for tensor in plain.values()):
        found += [Unit(bundle, _saved(bundle, plain, names), streams=False) for bundle in _by_module(together)]
    else:  # a conversion may need any of them
        streamed = {name for unit in found for name in unit.saved}
        found.append(Unit(together, {name: saved[name] for name in saved if name not in streamed}, streams=False))
    return found


def _saved(group: Group, plain: Mapping[str, torch.Tensor], names: Mapping[int, str]) -> dict[str, torch.Tensor]:
    return {names[id(plain[name])]: plain[name] for name in map(_plain_name, group) if name in plain}


def _by_module(group: Group) -> list[Group]:
    """An adapter and the weights that it is merged into."""
    found: dict[str, Group] = {}
    for weight in group:
        found.setdefault(ADAPTER.sub("", weight.name), []).append(weight)
    return list(found.values())


def converted(engine: TrainingEngine, group: Group, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is saved of whole weights."""
    tensors = revert_weight_conversion(engine.module.model, _plain(engine, group, state))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _plain(engine: TrainingEngine, group: Group, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plain model's own: without adapters, padding and what is never saved."""
    dtypes = {_plain_name(weight): weight.dtype for weight in group}
    if engine.settings.lora:
        state = merged(engine.module, state)
    plain = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    cast = {name: tensor.to(dtypes[name]) for name, tensor in plain.items()}
    cut_padding(engine.module.model, cast)
    ignored = set(engine.module.model._keys_to_ignore_on_save or ())
    return {name: tensor for name, tensor in cast.items() if name not in ignored}


def _plain_name(weight: Weight) -> str:
    return weight.name.removeprefix("model.").replace(".base_layer.", ".")
