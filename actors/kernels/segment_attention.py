"""Attention inside the segments of a pack, one SDPA call for each: the reference, and what a CPU runs."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from actors.kernels.extra_arguments import Extras, plain_attention

NO_EXTRAS = Extras()
Window = int | None
"""Tokens closer than this see each other; None = all."""


def per_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: Sequence[int],
    causal: bool,
    scale: float | None,
    window: Window,
    dropout: float,
    extras: Extras = NO_EXTRAS,
) -> torch.Tensor:
    """One SDPA call for each segment, on any device: the reference, and what a CPU runs; plain products with extras."""
    parts = []
    grouped = query.shape[1] != key.shape[1]
    for a, b in itertools.pairwise(bounds):
        mask = _window_mask(b - a, window, causal, query.device) if window and b - a > window else None
        q, k, v = (t[:, :, a:b] for t in (query, key, value))
        if extras:
            if mask is None and causal:
                mask = _window_mask(b - a, b - a, causal, query.device)
            parts.append(plain_attention(q, k, v, mask, scale, dropout, extras))
            continue
        own = causal and mask is None
        parts.append(scaled_dot_product_attention(q, k, v, mask, dropout, own, scale=scale, enable_gqa=grouped))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def of_reads(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: Sequence[int],
    reads_S: torch.Tensor,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """`per_segment` for the queries at `reads_S` only; the other positions are zero."""
    reads = reads_S.numpy()
    out = query.new_zeros(1, query.shape[2], query.shape[1], query.shape[3])
    for read, segment in zip(reads.tolist(), (np.searchsorted(bounds, reads, side="right") - 1).tolist(), strict=True):
        start, end = bounds[segment], read + 1 if causal else bounds[segment + 1]
        q, k, v = query[:, :, read : read + 1], key[:, :, start:end], value[:, :, start:end]
        out[:, read] = scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])[:, :, 0]
    return out


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Which token sees which, bool [length, length]; the same as transformers' `masking_utils`."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window
