"""Checkpoints of a small tensor, written as a training does, and functions that fail."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from actors.training.checkpointer import Checkpointer
from actors.training.zero_shards import ZeroShard
from data.storage import Storage

WHOLE = torch.arange(10.0)


def save(folder: Storage, step: int, world: int = 2, keep: int = 2, kind: str = "weights") -> None:
    """As `world` workers would, all at once: each holds an equal part of WHOLE, the first of them a second tensor."""

    def worker(rank: int) -> None:
        checkpointer = Checkpointer(folder, rank, world, keep)
        start, stop = (i * len(WHOLE) // world for i in (rank, rank + 1))
        shards = [ZeroShard("w", start, WHOLE[start:stop] + step)] + (
            [ZeroShard("b", 0, torch.ones(3))] if rank == 0 else []
        )
        checkpointer.save(step, {kind: shards}, {"step": step})
        checkpointer.wait()
        assert checkpointer.timing.written == 1, "it must not have failed"

    with ThreadPoolExecutor(world) as pool:
        list(pool.map(worker, range(world)))


def raising(error: Exception) -> Callable[..., None]:
    def raises(*_: object) -> None:
        raise error

    return raises
