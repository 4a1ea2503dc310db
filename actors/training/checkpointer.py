"""Checkpoints of a training on storage: written in the background, complete or absent, read by any number of workers.

    {folder}/000000123/weights-00000.safetensors   shards of worker 0; exp_avg and exp_avg_sq likewise
                       part-00000.json             their names and lengths, with checksums
                       COMPLETE.json               written last, by the first worker, when all parts are there

Ray Train's own asynchronous reports leave orphans after a crash in mid-upload, and a run that starts at step 0.
Knows no model: it gets shards of named tensors.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from actors.training.zero_shards import ZeroShard
from data.errors import UserError
from data.lease import Fence
from data.stage_metrics import CheckpointMetrics
from data.storage import Storage

COMPLETE = "COMPLETE.json"
WAIT_FOR_OTHERS_S = 1800.0
POLL_S = 0.2


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
    timing: Timing = field(default_factory=Timing)
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
        """Wait until the last save is complete or has failed; a failure is printed and counted."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self.timing.written += 1
        except (OSError, TimeoutError) as error:
            # No reason to end the training: the next checkpoint may succeed.
            self.timing.failed += 1
            print(f"warning: a checkpoint was not written: {error}", flush=True)

    def require_owner(self) -> None:
        """Raise LeaseLost if another driver has taken over."""
        if self.fence:
            self.fence.require()

    def _upload(self, step: int, kinds: dict[str, dict[str, torch.Tensor]], state: Any) -> None:
        started = time.perf_counter()
        folder = self.folder / f"{step:09d}"
        if (folder / COMPLETE).exists():
            return  # by an earlier run of this training
        self.require_owner()
        part: dict[str, Any] = {"files": {}}
        try:
            with tempfile.TemporaryDirectory(prefix="steerlm-checkpoint-") as local:
                for kind, tensors in kinds.items():
                    name = f"{kind}-{self.rank:05d}.safetensors"
                    save_file(tensors, os.path.join(local, name))
                    lengths = {key: value.numel() for key, value in tensors.items()}
                    part["files"][name] = {"sha256": _sha256(os.path.join(local, name)), "shards": lengths}
                    (folder / name).put(os.path.join(local, name))
        except OSError as error:
            part = {"failed": str(error)}
            raise
        finally:
            (folder / _part_name(self.rank)).write_json(part)
        if self.rank == 0:
            files = self._all_parts(folder)
            self.require_owner()
            (folder / COMPLETE).write_json({"step": step, "state": state, "files": files})
            self._remove_old()
        self.timing.upload_s += time.perf_counter() - started

    def _all_parts(self, folder: Storage) -> dict[str, Any]:
        files: dict[str, Any] = {}
        deadline = time.monotonic() + WAIT_FOR_OTHERS_S
        for rank in range(self.world):
            path = folder / _part_name(rank)
            while not path.exists():
                if time.monotonic() > deadline:
                    late = f"worker {rank} has not written its part of {folder.uri}"
                    raise TimeoutError(f"{late} in {WAIT_FOR_OTHERS_S:.0f} s")
                time.sleep(POLL_S)
            part = path.read_json()
            if "failed" in part:
                raise OSError(f"worker {rank}: {part['failed']}")
            files |= part["files"]
        return files

    def _remove_old(self) -> None:
        for step in complete_steps(self.folder)[: -self.keep]:
            remove(self.folder / f"{step:09d}")


def complete_steps(folder: Storage) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    return sorted(int(name.split("/")[0]) for name in folder.names(COMPLETE))


def remove(checkpoint: Storage) -> None:
    """Remove the mark first: a checkpoint half removed must not look complete."""
    checkpoint.remove_files([COMPLETE])
    checkpoint.remove()


def sweep(folder: Storage) -> None:
    """Remove the incomplete checkpoints of dead workers."""
    complete = {f"{step:09d}" for step in complete_steps(folder)}
    for name in sorted({name.split("/")[0] for name in folder.names()} - complete):
        (folder / name).remove()


class Checkpoint:
    """A complete checkpoint; files are fetched and checked when they are needed."""

    def __init__(self, folder: Storage, step: int):
        """Reading a damaged file later raises UserError."""
        self.folder = folder / f"{step:09d}"
        self.step = step
        described = (self.folder / COMPLETE).read_json()
        self.state: Any = described["state"]
        self._files: dict[str, Any] = described["files"]
        self._index: dict[str, dict[str, list[tuple[int, int, str, str]]]] = {}
        self._opened: dict[str, Any] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="steerlm-resume-")

    def values(self, kind: str, name: str, start: int, num: int) -> torch.Tensor:
        """Elements [start, start + num) of the flattened tensor `name`. Raises UserError if they are not all there."""
        found = []
        at = start
        for first, length, file, key in self._shards_of(kind).get(name, []):
            if first <= at < first + length and at < start + num:
                stop = min(first + length, start + num)
                found.append(self._open(file).get_slice(key)[at - first : stop - first])
                at = stop
        if at < start + num:
            raise UserError(
                f"the checkpoint {self.folder.uri} lacks {kind} of {name} from element {at} on; "
                "delete it to go on from an earlier one"
            )
        return torch.cat(found)

    def names(self, kind: str) -> list[str]:
        """The tensors of a kind."""
        return list(self._shards_of(kind))

    def size(self, kind: str, name: str) -> int:
        """How many elements a tensor has."""
        first, length, *_ = self._shards_of(kind)[name][-1]
        return first + length

    def _shards_of(self, kind: str) -> dict[str, list[tuple[int, int, str, str]]]:
        """Of each tensor: first element, number of elements, file and key of each shard, in order."""
        if kind not in self._index:
            index: dict[str, list[tuple[int, int, str, str]]] = {}
            for file, described in self._files.items():
                if file.rsplit("-", 1)[0] == kind:
                    for key, length in described["shards"].items():
                        name, start = key.rsplit("@", 1)
                        index.setdefault(name, []).append((int(start), length, file, key))
            self._index[kind] = {name: sorted(shards) for name, shards in index.items()}
        return self._index[kind]

    def _open(self, file: str) -> Any:
        if file not in self._opened:
            remote, described = self.folder / file, self._files[file]
            path = remote.path
            if not remote.is_local:
                path = os.path.join(self._scratch.name, file)
                remote.fs.get_file(remote.path, path)
            if not os.path.exists(path) or _sha256(path) != described["sha256"]:
                raise UserError(
                    f"{remote.uri} is damaged or gone: "
                    f"delete the checkpoint {self.folder.uri} to go on from an earlier one"
                )
            self._opened[file] = safe_open(path, framework="pt")
        return self._opened[file]

    def close(self) -> None:
        self._opened.clear()
        self._scratch.cleanup()


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
