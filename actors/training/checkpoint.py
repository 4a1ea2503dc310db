"""Reading checkpoints: which are complete, which of them is whole, and any part of any tensor.

`actors.training.checkpointer` writes them and says how they look. Knows no model: it gives named tensors.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from actors.training.collectives import barrier, from_first, summed
from data.errors import UserError
from data.storage import Storage

COMPLETE = "COMPLETE.json"
STEP = re.compile(r"\d{9}")


class Damaged(UserError):
    """A file of a checkpoint is gone, or not what was written."""


class Checkpoint:
    """A complete checkpoint; files are fetched and checked when they are needed."""

    def __init__(self, folder: Storage, step: int):
        """Raises Damaged, here and where a damaged file is read later."""
        self.folder = folder / f"{step:09d}"
        self.step = step
        self._index: dict[str, dict[str, list[tuple[int, int, str, str]]]] = {}
        self._opened: dict[str, Any] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="steerlm-resume-")
        try:
            described = (self.folder / COMPLETE).read_json()
            self.state: Any = described["state"]
            self._files: dict[str, Any] = dict(described["files"])
        except (UserError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise Damaged(f"{self.folder.uri}/{COMPLETE} is damaged ({type(error).__name__})") from None

    def verify(self, rank: int = 0, world: int = 1) -> None:
        """Raise Damaged unless every file is what was written; of `world` workers, each checks its share of them."""
        for file in sorted(self._files)[rank::world]:
            self._open(file)

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

    def checksums(self, kind: str) -> list[str]:
        """Of the files of a kind: what tells their tensors from those of any other checkpoint."""
        return [said["sha256"] for file, said in sorted(self._files.items()) if file.rsplit("-", 1)[0] == kind]

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
            try:
                if not remote.is_local:
                    path = os.path.join(self._scratch.name, file)
                    remote.fs.get_file(remote.path, path)
                if sha256(path) != described["sha256"]:
                    raise Damaged(f"{remote.uri} is damaged: {os.path.getsize(path):,} bytes with another checksum")
                self._opened[file] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise Damaged(f"{remote.uri} is gone") from None
            except SafetensorError as error:
                raise Damaged(f"{remote.uri} is damaged: {error}") from None
        return self._opened[file]

    def close(self) -> None:
        self._opened.clear()
        self._scratch.cleanup()


def sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def complete_steps(folder: Storage) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    marked = (name.split("/")[0] for name in folder.names(COMPLETE))
    return sorted(int(name) for name in marked if STEP.fullmatch(name))


def newest_whole(folder: Storage, rank: int, world: int) -> Checkpoint | None:
    """The newest complete checkpoint that is what was written; every worker takes part, and gets the same one.

    Those that are not are named in the log and removed.
    """
    steps: list[int] = from_first(complete_steps(folder)[::-1] if rank == 0 else None)
    for step in steps:
        if found := whole(folder, step, rank, world):
            return found
        if rank == 0:
            older = "the one before it is tried" if step != steps[-1] else "there is none before it: step 0 is next"
            print(f"warning: the checkpoint of step {step} is not whole, and is removed; {older}", flush=True)
            remove(folder / f"{step:09d}")
        barrier()
    return None


def whole(folder: Storage, step: int, rank: int, world: int) -> Checkpoint | None:
    """The complete checkpoint of a step if every worker finds its share of it whole; every worker takes part."""
    found = _verified(folder, step, rank, world)
    [num_whole] = summed(float(found is not None))
    if found and num_whole < world:
        found.close()
    return found if num_whole == world else None


def _verified(folder: Storage, step: int, rank: int, world: int) -> Checkpoint | None:
    try:
        found = Checkpoint(folder, step)
        found.verify(rank, world)
    except Damaged as error:
        print(f"warning: {error}", flush=True)
        return None
    return found


def sweep(folder: Storage, before: int | None = None, keep: Iterable[int] | None = None) -> None:
    """Remove the incomplete checkpoints (of dead workers; with `before`, of steps before it).

    With `keep`, complete ones of other steps go as well. What is not called as a step is none of ours, and stays.
    """
    complete = set(complete_steps(folder))
    for step in sorted(complete - set(complete if keep is None else keep)):
        remove(folder / f"{step:09d}")
    left = {name.split("/")[0] for name in folder.names()} - {f"{step:09d}" for step in complete}
    for name in sorted(filter(STEP.fullmatch, left)):
        if before is None or name < f"{before:09d}":
            (folder / name).remove()


def remove(checkpoint: Storage) -> None:
    """Remove the mark first: a checkpoint half removed must not look complete."""
    checkpoint.remove_files([COMPLETE])
    checkpoint.remove()
