"""Sums and values that all workers of a training share. Without a process group there is one worker. Knows no model."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from data.errors import UserError
from data.storage import Unwritable

POLL_S = 0.1


class AgreedError(UserError):
    """A user error that every worker raises at the same place, so that none waits for another."""


class WorkerFailed(Exception):
    """Another worker has failed, and its sentence."""


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

    Workers ask the group's store: a collective would fail at its time limit while one of them writes to slow storage.
    """
    if not dist.is_initialized():
        return
    store, rank = distributed_c10d._get_default_store(), dist.get_rank()
    turn = store.add(f"steerlm/passed/{rank}", 1)
    if rank:
        _wait(store, "steerlm/passed/0", turn)


def meet() -> None:
    """Wait until every worker has come here, however long it takes."""
    if not dist.is_initialized():
        return
    store, world = distributed_c10d._get_default_store(), dist.get_world_size()
    arrived = store.add("steerlm/meets", 1)
    # Nobody leaves a meeting before all are there, so meeting n has the arrivals from n * world + 1 on.
    _wait(store, "steerlm/meets", -(-arrived // world) * world)


def _wait(store: Any, counter: str, least: int) -> None:
    """Until the counter is that high; pauses grow, so that what is ready soon costs little."""
    pause = POLL_S / 64
    while store.add(counter, 0) < least:
        time.sleep(pause)
        pause = min(2 * pause, POLL_S)


def gathered(value: Any) -> list[Any]:
    """Every worker's value, by rank, on every worker."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def agree_all(error: Exception | None) -> None:
    """If one of the workers has an error, every one raises; waits for all of them without a time limit.

    What people must change (Unwritable) is an AgreedError with the first worker's sentence. After any other error its
    worker raises its own, and the others WorkerFailed.
    """
    meet()
    said = gathered((isinstance(error, Unwritable), f"{error}") if error else None)
    for rank, one in enumerate(said):
        if one and one[0]:
            raise AgreedError(one[1]) from error
        if one:
            raise error or WorkerFailed(f"worker {rank} could not save its part of the model: {one[1]}")
