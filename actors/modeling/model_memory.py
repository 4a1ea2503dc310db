"""Bytes that a process needs before and while it runs a model, beside its weights: libraries, a forward, a KV cache.

From a model's shape alone; and the bytes that a device has. Knows no training and no engine.
"""

import os
from collections.abc import Mapping

import torch

from actors.kernels.machine_memory import host_bytes
from actors.modeling.model_shape import ModelShape

GIB = 2**30
CPU_PROCESS = int(0.78 * GIB)
"""Resident memory of a process of Ray on a CPU before it has a model: torch, transformers, DeepSpeed, Ray."""
GPU_PROCESS = GIB
"""CUDA's context, the workspaces of cuBLAS and NCCL: an estimate, nothing here is allocated by torch."""
MAX_PARTS = 16
"""GPUs of the largest nodes."""


def forward_bytes(shape: ModelShape, tokens: int, width_bytes: int, parts: int = 1) -> float:
    """Of a forward of a pack that keeps nothing: the residual stream, and the largest part of one layer.

    Of each of the `parts` that every layer is split into.
    """
    query, key = shape.head_widths
    attention = (2 * query + 2 * key) / parts + shape.width
    feed_forward = (3 if shape.gated else 2) * shape.feed_forward / parts + 2 * shape.experts_per_token * shape.width
    return float(tokens * width_bytes * (3 * shape.width + max(attention, feed_forward)))


def cache_bytes(shape: ModelShape, sequences: int, tokens: int, width_bytes: int) -> float:
    """Of the keys and values of `sequences` at `tokens` each."""
    return float(2 * shape.layers * shape.head_widths[1] * sequences * tokens * width_bytes)


def device_bytes(memory_gib: float | None, on_gpu: bool, num_processes: int) -> int | None:
    """Memory of a process's device: as set, or this machine's GPU, or its share of this machine's memory beside others.

    None = only the cluster knows.
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if on_gpu:
        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    if os.environ.get("RAY_ADDRESS"):
        return None
    return host_bytes() // num_processes


def in_gib(size: float) -> str:
    """For a line that people read."""
    return f"{size / GIB:,.1f}" if size > 10 * GIB else f"{size / GIB:.2g}"


def listed(parts: Mapping[str, float]) -> str:
    """Each by its name, in GiB, for a line that people read."""
    return ", ".join(f"{name} {in_gib(size)}" for name, size in parts.items())
