"""Which files of a model, written before an export was killed, are whole and hold the very weights of this one.

Beside each file that is whole stands a mark: what tells the weights in it from any others, and its own checksum.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from actors.training.collectives import gathered
from actors.training.export_form import Unit
from actors.training.shard_layout import ShardLayout
from actors.training.weight_parts import WeightParts
from data.errors import UserError
from data.storage import Storage

CHUNK = 2**24
"""Elements that are copied to the CPU at a time."""


def fingerprints(parts: WeightParts, files: Sequence[Sequence[Unit]]) -> list[str]:
    """Of each file: its form, and the weights that it gets, byte by byte. Every worker takes part.

    Each looks at what it holds; what all of them hold, one looks at. A training with another number of workers
    computes other weights, to the last bit.
    """
    engine, found = parts.engine, []
    for number, units in enumerate(files):
        digest = hashlib.sha256()
        for unit in units:
            for weight in unit.weights:
                if not parts.is_kept(weight) and (parts.is_spread(weight) or number % engine.world == engine.rank):
                    _add(digest, parts.own(weight))
        found.append(digest.hexdigest())
    of_workers: list[list[str]] = gathered(found)
    kept = parts.kept.checksums("weights") if parts.kept else []
    return [
        _digest([_form(engine.settings.lora, units), kept, [digests[number] for digests in of_workers]])
        for number, units in enumerate(files)
    ]


def _add(digest: Any, values_N: torch.Tensor) -> None:
    for chunk in values_N.split(CHUNK):
        digest.update(chunk.to("cpu").contiguous().view(torch.uint8).numpy().data)


def _form(lora: object, units: Sequence[Unit]) -> list[object]:
    return [str(lora), ShardLayout({k: v for unit in units for k, v in unit.saved.items()}).header().hex()]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_mark(mark: Storage, file: Storage, fingerprint: str) -> None:
    """Say of a file, which is whole, what it holds."""
    mark.write_json({"fingerprint": fingerprint, "bytes": file.size(), "checksum": file.checksum()})


def is_whole(mark: Storage, file: Storage, fingerprint: str, num_bytes: int) -> bool:
    """Is the file what was written, and are these the weights in it?"""
    try:
        said = mark.read_json()
    except (FileNotFoundError, UserError):
        return False
    if said["fingerprint"] != fingerprint or said["bytes"] != num_bytes or not file.exists():
        return False
    return file.size() == num_bytes and bool(file.checksum() == said["checksum"])
