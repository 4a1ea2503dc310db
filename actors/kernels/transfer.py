"""Copies between the host and a GPU that do not stop either: from and into pinned memory. Knows no model."""

from collections.abc import Callable

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`values` on `device`. To a GPU the host does not wait for the copy; what uses it there comes after it."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    # PyTorch keeps the pinned memory until the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Start to copy `tensor` to the host; the function returned waits for the copy and gives it."""
    if tensor.device.type != "cuda":
        return tensor.numpy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))

    def wait() -> np.ndarray:
        done.synchronize()
        return copy.numpy()

    return wait
