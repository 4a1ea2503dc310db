"""Two workers of a training that only saves and resumes, as processes in a gloo group, and faults to put into them."""

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from botocore.exceptions import EndpointConnectionError
from safetensors import SafetensorError

import actors.training.checkpointer as writing
from actors.training.checkpoint import Checkpoint, complete_steps, newest_whole, sweep
from actors.training.collectives import barrier, from_first
from actors.training.zero_shards import ZeroShard
from data.storage import Storage

KINDS = ("weights", "exp_avg", "exp_avg_sq")
NUM = 1000
"""Elements of each worker's shard."""
LIBRARIES = ["torch.distributed", "safetensors.torch", "s3fs", "pyarrow.parquet", "ray"]
"""Imported once, for all workers; the server of Python 3.11 that forks them finds no modules of ours."""
Fault = Literal["connection", "safetensors", "kill"]


@dataclass(frozen=True)
class Try:
    """One training of two lives: it saves steps 1, 2 and 3; a fault comes to one worker at a file of step 2."""

    folder: str
    fault: Fault
    seed: int

    def run(self) -> tuple[int, list[int]]:
        """The step that the second life resumed from, and the complete ones at its start: each holds what it should."""
        _start(_first_life, self)
        complete = complete_steps(Storage(self.folder))
        for step in complete:
            _require_values(Checkpoint(Storage(self.folder), step))
        results = _start(_second_life, self)
        assert len(set(results)) == 1, f"the workers resume from different steps: {results}"
        return results[0], complete


def _start(life: Callable[[Try, int, str, Any], None], planned: Try) -> list[int]:
    """Run a life on two workers; as Ray Train does, end the other as soon as one is dead."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    meeting, results = f"{tempfile.mkdtemp()}/meeting", context.SimpleQueue()
    workers = [context.Process(target=life, args=(planned, rank, meeting, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        if any(worker.exitcode not in (0, None) for worker in workers):
            for worker in workers:
                worker.kill()
        multiprocessing.connection.wait([worker.sentinel for worker in workers if worker.is_alive()], timeout=60)
    found = []
    while not results.empty():
        found.append(results.get())
    return found


def _join(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    # By a file: a port that was free a moment ago may be another's by now.
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def _first_life(planned: Try, rank: int, meeting: str, _: Any) -> None:
    rng = random.Random(planned.seed)
    victim, at, moment = rng.randrange(2), rng.randrange(3), rng.choice(["before", "half", "after"])
    _join(rank, meeting)
    checkpointer = _checkpointer(planned, rank)
    _save(checkpointer, 1)
    if rank == victim:
        FAULTS[planned.fault](checkpointer.folder.is_local, at, moment)
    for step in (2, 3):
        _save(checkpointer, step)


def _second_life(planned: Try, rank: int, meeting: str, results: Any) -> None:
    _join(rank, meeting)
    checkpointer = _checkpointer(planned, rank)
    if rank == 0:
        sweep(checkpointer.folder)
    barrier()
    found = newest_whole(checkpointer.folder, rank, 2)
    assert found is not None
    _require_values(found)
    results.put(found.step)
    _save(checkpointer, 4)
    barrier()
    assert complete_steps(checkpointer.folder)[-1] == 4


def _checkpointer(planned: Try, rank: int) -> writing.Checkpointer:
    life = from_first(random.Random().randbytes(4).hex())
    return writing.Checkpointer(Storage(planned.folder), rank, 2, keep=2, life=life)


def _save(checkpointer: writing.Checkpointer, step: int) -> None:
    values = torch.full((NUM,), float(step))
    shards = {kind: [ZeroShard("w", checkpointer.rank * NUM, values + i)] for i, kind in enumerate(KINDS)}
    checkpointer.save(step, shards, {"step": step})
    checkpointer.wait()
    barrier()


def _require_values(checkpoint: Checkpoint) -> None:
    """Every element of every kind is that of the step."""
    checkpoint.verify()
    assert checkpoint.state == {"step": checkpoint.step}
    for i, kind in enumerate(KINDS):
        values = checkpoint.values(kind, "w", 0, 2 * NUM)
        assert bool((values == checkpoint.step + i).all()), f"{checkpoint.folder.uri}: {kind} is not of this step"


def _connection(_: bool, at: int, moment: str) -> None:
    """Storage does not answer at the file number `at`, before it is sent or when it is there; then it does again."""

    def put(self: Storage, local: str) -> None:
        if next(calls) == at:
            if moment == "after":
                real(self, local)
            raise EndpointConnectionError(endpoint_url="http://storage.invalid")
        real(self, local)

    real, calls = Storage.put, iter(range(100))
    Storage.put = put  # type: ignore[method-assign]


def _safetensors(_: bool, at: int, moment: str) -> None:
    """The disk is full: safetensors' own error, with half of the file written."""

    def save_file(tensors: Any, path: str) -> None:
        real(tensors, path)
        if next(calls) == at:
            os.truncate(path, os.path.getsize(path) // 2)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    real, calls = writing.save_file, iter(range(100))
    writing.save_file = save_file


def _kill(is_local: bool, at: int, moment: str) -> None:
    """`kill -9` before, in or after the write of a file; in it only on a disk, for a PUT is whole or absent."""

    def put(self: Storage, local: str) -> None:
        if next(calls) != at:
            real(self, local)
            return
        if moment == "after":
            real(self, local)
        if moment == "half" and is_local:
            shutil.copyfile = _half_copied
            real(self, local)
        os.kill(os.getpid(), signal.SIGKILL)

    real, calls = Storage.put, iter(range(100))
    Storage.put = put  # type: ignore[method-assign]


def _half_copied(source: str, target: str) -> Any:
    with open(source, "rb") as read, open(target, "wb") as written:
        written.write(read.read(os.path.getsize(source) // 2))
        written.flush()
        os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[Fault, Callable[[bool, int, str], None]] = {
    "connection": _connection,
    "safetensors": _safetensors,
    "kill": _kill,
}
