"""Bytes of the tensors that live at a time, counted at every operation; works on the meta device as well."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts what operations inside this context allocate: `peak` bytes at a time, `largest` elements of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._live = 0
        self._sizes: dict[int, tuple[int, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before:
                self._add(tensor)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes(), weakref.ref(storage, lambda _: self._freed(key))
            self._live += storage.nbytes()
            self.peak, self.largest = max(self.peak, self._live), max(self.largest, tensor.numel())

    def _freed(self, key: int) -> None:
        size, _ = self._sizes.pop(key)
        self._live -= size
