"""Where each tensor stands in a safetensors file, known before any value is. To the byte as safetensors writes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The format's names. Tensors are in the order of their dtypes here, then of their names."""
ALIGNED = 8
"""The header ends at a multiple of so many bytes."""


@dataclass(frozen=True)
class ShardLayout:
    """A file of named tensors; `tensors` need no values."""

    tensors: Mapping[str, torch.Tensor]

    def header(self) -> bytes:
        """What the file starts with."""
        described: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name, (start, tensor) in self._placed().items():
            place = [start, start + tensor.nbytes]
            described[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        content = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
        content += b" " * (-len(content) % ALIGNED)
        return len(content).to_bytes(8, "little") + content

    def starts(self) -> dict[str, int]:
        """Of each tensor's first byte, in the file."""
        before = len(self.header())
        return {name: before + start for name, (start, _) in self._placed().items()}

    @property
    def data_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        return len(self.header()) + self.data_bytes

    def _placed(self) -> dict[str, tuple[int, torch.Tensor]]:
        """Name -> first byte after the header, and the tensor; in the file's order."""
        found, start, order = {}, 0, list(DTYPES)
        for name in sorted(self.tensors, key=lambda name: (order.index(self.tensors[name].dtype), name)):
            found[name] = start, self.tensors[name]
            start += self.tensors[name].nbytes
        return found
