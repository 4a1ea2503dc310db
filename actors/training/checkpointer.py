"""Checkpoints of a training on storage: written in the background, complete or absent, whatever fails.

    {folder}/000000123/weights-00000.safetensors   shards of worker 0; exp_avg and exp_avg_sq likewise
                       part-00000.json             their names and lengths, with checksums; or why the part failed
                       COMPLETE.json               written last, by the first worker, when all parts are there

A part counts as failed until its files are found whole on storage. Ray Train's own asynchronous reports leave orphans
after a crash in mid-upload, and a run that starts at step 0. Knows no model: it gets shards of named tensors.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file

from actors.training.checkpoint import COMPLETE, complete_steps, sha256, sweep
from actors.training.zero_shards import ZeroShard
from data.lease import Fence, LeaseLost
from data.printable import printable
from data.stage_metrics import CheckpointMetrics
from data.storage import Storage

WAIT_FOR_OTHERS_S = 1800.0
POLL_S = 0.2
CAUSE = 300
"""Characters of a failure's cause that a message shows."""


class Incomplete(Exception):
    """A checkpoint that is not whole, and why."""


@dataclass
class Timing:
    """Seconds of checkpoints: those the training waited, and those of the uploads in the background."""

    blocked_s: float = 0.0
    upload_s: float = 0.0
    written: int = 0
    failed: int = 0

    def metrics(self) -> CheckpointMetrics:
        seconds = round(self.blocked_s, 3), round(self.upload_s, 3)
        return CheckpointMetrics(written=self.written, failed=self.failed, blocked_s=seconds[0], upload_s=seconds[1])


@dataclass
class Checkpointer:
    """The checkpoints in one folder, as one of `world` workers writes them."""

    folder: Storage
    rank: int
    world: int
    keep: int
    """Number of the newest that are kept."""
    timing: Timing = field(default_factory=Timing)
    needed: Callable[[], Iterable[int]] = tuple
    """Older steps that are kept as well."""
    life: str = ""
    """Of the training, the same on all workers: the part of a worker of another life is none of ours."""
    fence: Fence | None = None
    """A worker that outlives its driver writes nothing once another has taken over."""

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, kinds: Mapping[str, Iterable[ZeroShard]], state: Any) -> None:
        """Copy the shards and return; a thread uploads the copies. Waits only for the previous upload.

        `state` must fit into JSON; that of the first worker counts.
        """
        started = time.perf_counter()
        self.wait()
        copies = {
            kind: {f"{s.name}@{s.start}": s.values_N.detach().to("cpu", copy=True) for s in shards}
            for kind, shards in kinds.items()
        }
        self._pending = self._pool.submit(self._upload, step, copies, state)
        self.timing.blocked_s += time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the last save is complete or has failed; a failure is printed and counted. Raises LeaseLost."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self.timing.written += 1
        except LeaseLost:
            raise
        except Exception as error:  # whatever it is: the training goes on, and the next checkpoint may succeed
            self.timing.failed += 1
            print(f"warning: a checkpoint was not written: {_cause(error)}", flush=True)

    def require_owner(self) -> None:
        """Raise LeaseLost if another driver has taken over."""
        if self.fence:
            self.fence.require()

    def _upload(self, step: int, kinds: dict[str, dict[str, torch.Tensor]], state: Any) -> None:
        started = time.perf_counter()
        folder = self.folder / f"{step:09d}"
        names = {kind: f"{kind}-{self.rank:05d}.safetensors" for kind in kinds}
        self.require_owner()
        try:
            if (folder / COMPLETE).exists():
                return  # by an earlier run of this training
            files = {names[kind]: _written(folder / names[kind], tensors) for kind, tensors in kinds.items()}
            self._note(folder, {"files": files})
        except Exception as error:
            self._note_failure(folder, error)
            with contextlib.suppress(Exception):
                folder.remove_files(names.values())  # room for the next one
            raise
        if self.rank == 0:
            files = self._all_parts(folder)
            self.require_owner()
            (folder / COMPLETE).write_json({"step": step, "state": state, "files": files})
            self._remove_old(step)
        self.timing.upload_s += time.perf_counter() - started

    def _note(self, folder: Storage, part: Mapping[str, Any]) -> None:
        (folder / _part_name(self.rank)).write_json({"life": self.life, **part})

    def _note_failure(self, folder: Storage, error: Exception) -> None:
        """For the first worker, which waits. If storage takes nothing, it waits in vain, and ends as failed."""
        for _ in range(3):
            with contextlib.suppress(Exception):
                self._note(folder, {"failed": _cause(error)})
                return
            time.sleep(POLL_S)

    def _all_parts(self, folder: Storage) -> dict[str, Any]:
        files: dict[str, Any] = {}
        deadline = time.monotonic() + WAIT_FOR_OTHERS_S
        for rank in range(self.world):
            while (part := self._part(folder / _part_name(rank))) is None:
                if time.monotonic() > deadline:
                    late = f"worker {rank} has not written its part of {folder.uri}"
                    raise Incomplete(f"{late} in {WAIT_FOR_OTHERS_S:.0f} s")
                time.sleep(POLL_S)
            if "failed" in part:
                raise Incomplete(f"worker {rank}: {part['failed']}")
            files |= part["files"]
        return files

    def _part(self, path: Storage) -> dict[str, Any] | None:
        part: dict[str, Any] | None = path.read_json() if path.exists() else None
        return part if part and part.get("life") == self.life else None

    def _remove_old(self, step: int) -> None:
        """What failed before `step` goes too: every worker has begun this step, so none still writes there."""
        try:
            sweep(self.folder, step, {*complete_steps(self.folder)[-self.keep :], *self.needed()})
        except Exception as error:
            print(f"warning: old checkpoints are left in {self.folder.uri}: {_cause(error)}", flush=True)


def _written(target: Storage, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write a file of finite tensors, and find it whole on storage; returns what tells it from any other."""
    for name, values in tensors.items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise Incomplete(f"{name.rsplit('@', 1)[0]} holds NaN or infinities")
    with tempfile.TemporaryDirectory(prefix="steerlm-checkpoint-") as local:
        path = os.path.join(local, "shards")
        save_file(tensors, path)
        described = {"sha256": sha256(path), "shards": {name: values.numel() for name, values in tensors.items()}}
        target.put(path)
        sizes = os.path.getsize(path), target.fs.info(target.path)["size"]
    if sizes[0] != sizes[1]:
        raise Incomplete(f"{target.uri} has {sizes[1]:,} bytes of {sizes[0]:,}")
    return described


def _cause(error: Exception) -> str:
    text = printable(" ".join(str(error).split()), CAUSE)
    return text if isinstance(error, Incomplete | OSError) else f"{type(error).__name__}: {text}"


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"
