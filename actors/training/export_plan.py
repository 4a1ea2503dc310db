"""The files of a finished model: which weights go into which, planned from shapes alone and the same on every worker.

Knows no values and no storage. Weights of one layer stay together: some families save a layer's weights in another
form than they train them (experts, fused projections), and adapters are merged into the weight beside them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

SHARD_BYTES = 4 * 10**9
"""A file of weights has about so many bytes at most."""
BATCH_BYTES = 64 * 2**20
"""So many bytes of a weight, of all workers together, are on the way to a file's owner at a time."""
BATCHES = 6
"""That many of them an owner may have at once: on arrival, split by worker, waiting, and being written."""
LAYER = re.compile(r"^.*?\.\d+\.")
ADAPTER = re.compile(r"\.(base_layer|lora_[AB])\..*$")


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model that is saved."""

    name: str
    tensor: Any
    """Live; sharded at ZeRO stage 3."""
    dtype: torch.dtype
    """As it is saved."""

    @property
    def trained(self) -> bool:
        return bool(self.tensor.requires_grad)

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = getattr(self.tensor, "ds_shape", self.tensor.shape)
        return shape

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


Group = list[Weight]


def saved_weights(module: torch.nn.Module, heads: Iterable[str], dtype: torch.dtype) -> Iterator[Weight]:
    """The weights of `module.model` in the order of its modules; a tied one once, under its first name.

    `heads` are saved in float32 whatever the others are: scores are compared to the hundredth of a point.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    kept = tuple(f"model.{head}." for head in heads)
    for name in module.state_dict():  # it has no buffers that are made anew
        if name.startswith("model.") and name in tensors:
            tensor = tensors[name]
            floating = tensor.is_floating_point()
            wanted = torch.float32 if name.startswith(kept) and floating else dtype if floating else tensor.dtype
            yield Weight(name, tensor, wanted)


def planned(weights: Iterable[Weight], shard_bytes: int) -> list[list[Group]]:
    """For each file, of about `shard_bytes` at most, the groups of weights that it gets."""
    groups: dict[str, Group] = {}
    for weight in weights:
        layer = LAYER.match(weight.name)
        groups.setdefault(layer[0] if layer else ADAPTER.sub("", weight.name), []).append(weight)
    files: list[list[Group]] = [[]]
    filled = 0
    for group in groups.values():
        size = sum(weight.num_bytes for weight in group)
        if files[-1] and filled + size > shard_bytes:
            files.append([])
            filled = 0
        files[-1].append(group)
        filled += size
    return files


def owners(sizes: Sequence[int], world: int) -> list[int]:
    """For each file, of so many bytes, the worker that writes it: all have about as many bytes.

    `[4, 4, 4, 1]` for two workers -> `[0, 1, 0, 1]`.
    """
    filled, found = [0] * world, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        found[number] = owner = filled.index(min(filled))
        filled[owner] += sizes[number]
    return found


def file_name(number: int, count: int) -> str:
    """As transformers names it; `number` starts at 0."""
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
