"""Write a model's files of weights one after the other, while the next is gathered. Knows no model."""

import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from safetensors.torch import save_file

from actors.training.export_plan import file_name
from data.storage import Storage

INDEX = "model.safetensors.index.json"


class ShardWriter:
    """The files of a model in `folder`. One is written in the background; a second one waits for it to end."""

    def __init__(self, folder: Storage, num_files: int):
        self._folder, self._num_files, self._number = folder, num_files, 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="export")
        self._pending: Future[None] | None = None
        self._file_of: dict[str, str] = {}
        self._num_bytes = 0

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the next file; raises what writing the one before has raised."""
        self.wait()
        name = file_name(self._number, self._num_files)
        self._number += 1
        self._file_of |= dict.fromkeys(tensors, name)
        self._num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        self._pending = self._pool.submit(_write, tensors, self._folder / name)

    def wait(self) -> None:
        """Until all files are written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def finish(self) -> None:
        """Wait, and write the index of several files."""
        self.wait()
        self._pool.shutdown()
        if self._num_files > 1:
            index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(self._file_of.items()))}
            (self._folder / INDEX).write_json(index)


def _write(tensors: dict[str, torch.Tensor], target: Storage) -> None:
    with tempfile.TemporaryDirectory(prefix="steerlm-export-") as local:
        path = target.path if target.is_local else os.path.join(local, "weights")
        # `target` is in a folder that nobody reads before it is whole.
        save_file(tensors, path, metadata={"format": "pt"})
        tensors.clear()
        if not target.is_local:
            target.put(path)
