"""Sums and values that all workers of a training share. Without a process group there is one worker. Knows no model."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from data.errors import UserError

POLL_S = 0.1


class AgreedError(UserError):
    """A user error that every worker raises at the same place, so that none waits for another."""


def limit_waiting(seconds: float) -> None:
    """No collective of any group waits longer: DeepSpeed makes groups of its own, with torch's own limits."""
    for group in list(distributed_c10d._world.pg_map) if dist.is_initialized() else []:
        if not distributed_c10d._rank_not_in_group(group):
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def summed(*values: float) -> list[float]:
    """Each value's sum over all workers."""
    sums = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return [float(v) for v in sums]


def summed_modulo(value: int) -> int:
    """The sum over all workers of non-negative integers, modulo 2**64."""
    # Halves of 32 bits, so that no sum overflows.
    halves = torch.tensor([value % 2**32, value // 2**32 % 2**32], dtype=torch.int64)
    if dist.is_initialized():
        dist.all_reduce(halves)
    low, high = halves.tolist()
    return int(low + (high << 32)) % 2**64


def from_first(value: Any) -> Any:
    """The first worker's value, on every worker."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def agree(error: UserError | None) -> None:
    """Raise the first worker's error, if it has one, on every worker."""
    if sentence := from_first(str(error) if error else ""):
        raise AgreedError(sentence)


def barrier() -> None:
    """Wait until the first worker has come here, however long it takes.

    Workers ask the group's store: a collective would fail at its time limit while the first one writes to slow storage.
    """
    if not dist.is_initialized():
        return
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    passed = f"steerlm/passed/{store.add(f'steerlm/waits/{rank}', 1)}"
    if rank == 0:
        store.set(passed, "1")
    while not store.check([passed]):
        time.sleep(POLL_S)
