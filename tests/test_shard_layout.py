"""A file that is written in parts is, to the byte, the one that safetensors writes."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from actors.training.shard_layout import DTYPES, ShardLayout
from actors.training.shard_writer import ShardWriter
from data.storage import Storage


def test_a_layout_is_that_of_safetensors(tmp_path: Path) -> None:
    shapes = {"b": (3, 5), "a.10.weight": (2,), "a.2.weight": (7, 1), "scalar": (), "empty": (0, 4), "ü": (1,)}
    numbers = torch.arange(15)
    tensors = {
        f"{name}{number}": numbers[: torch.Size(shape).numel()].reshape(shape).to(dtype, copy=True)
        for number, dtype in enumerate(DTYPES)
        for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    layout = ShardLayout({name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()})
    writer = ShardWriter(Storage(str(tmp_path / "ours")), layout, lambda: None)
    for name, tensor in reversed(tensors.items()):
        half = tensor.numel() // 2
        writer.add([(name, half, tensor.flatten()[half:]), (name, 0, tensor.flatten()[:half])])
    assert writer.close() is None
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs
    assert layout.file_bytes == len(ours)
