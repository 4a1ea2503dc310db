"""Packs for any transformers model: several conversations in one sequence, none sees another, no padding is computed.

Knows no model and no loss. The trap it avoids: transformers finds the segments of a pack only if `attention_mask` and
the cache are both absent; otherwise segments silently see each other.
"""

import functools
import importlib
import importlib.util
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from actors.kernels.extra_arguments import Extras, plain_attention
from data.errors import UserError

VARLEN = "varlen"
READS = "reads"
"""Attribute of an attention module: the only positions wanted (`actors.kernels.last_layer`), int64 [S] on the host."""

CHECK_LENGTHS = (1, 17, 130, 64)
CHECK_TOLERANCE = 0.03
"""A fused kernel may differ from the reference by this much of the largest value: some ten roundings of bf16 (2^-8)."""

Window = int | None
"""Tokens closer than this see each other; None = all."""
Fused = Callable[..., torch.Tensor]
"""(query [T, heads, d], key and value [T, kv_heads, d], cu_seq_lens on the device, longest segment, causal, scale,
window) -> [T, heads, d]."""

NO_EXTRAS = Extras()

log = logging.getLogger(__name__)


def varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    sliding_window: Window = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each segment [cu[i], cu[i+1]) of a pack; [1, heads, T, head_dim] -> [1, T, heads, head_dim].

    Builds no T x T mask, and a segment's numbers do not depend on its neighbors. Key and value may have fewer heads.
    Raises UserError for what it cannot compute: no bounds, a mask of the model's own, an unknown argument.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise UserError(
            f"{type(module).__name__} gets no bounds of the segments: the layers around it drop them, so that segments "
            "would see each other"
        )
    if attention_mask is not None:
        raise UserError(f"{type(module).__name__} gets a mask of the model's own, which knows no segments")
    extras = Extras.of(module, kwargs)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if query.is_cuda and not dropout and not extras and query.dtype in (torch.bfloat16, torch.float16):
        fused = fused_kernel(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
        if fused:
            qkv_THd = [t[0].transpose(0, 1) for t in (query, key, value)]
            out_THd = fused(*qkv_THd, cu_seq_lens_k, max_length_q, causal, scaling, sliding_window)
            return out_THd[None], None
    bounds = cu_seq_lens_q.tolist()
    reads_S = getattr(module, READS, None)
    if reads_S is not None and not sliding_window and not extras:
        return _of_reads(query, key, value, bounds, reads_S, causal, scaling), None
    return per_segment(query, key, value, bounds, causal, scaling, sliding_window, dropout, extras), None


AttentionInterface.register(VARLEN, varlen)


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


def _of_reads(
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


def kernel_name(config: Any, device: torch.device, dtype: torch.dtype) -> str:
    """The attention kernel of a model of `config` on `device`, for a log line."""
    if config._attn_implementation != VARLEN:
        return f"{config._attn_implementation}, one segment per forward"
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        text = config.get_text_config()
        num_heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
        if fused_kernel(device, dtype, num_heads, getattr(text, "num_key_value_heads", None) or num_heads, head_dim):
            return "a fused variable-length kernel"
    return "one SDPA call per segment"


@functools.cache
def fused_kernel(
    device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int
) -> Fused | None:
    """The variable-length kernel for these heads, checked against SDPA and logged once; None = one SDPA per segment."""
    shape = f"{num_heads}/{num_kv_heads} heads of {head_dim}, {dtype}, {device}"
    for name, kernel in _installed():
        try:
            error = _difference(kernel, device, dtype, num_heads, num_kv_heads, head_dim)
        except (RuntimeError, ValueError, NotImplementedError) as refusal:  # an architecture or shape it lacks
            log.warning("attention: %s refuses %s: %s", name, shape, str(refusal).splitlines()[0])
            continue
        if error <= CHECK_TOLERANCE:
            log.info("attention: %s (%s)", name, shape)
            return kernel
        log.warning("attention: %s is off by %.3g of the largest value for %s and is not used", name, error, shape)
    return None


def _installed() -> list[tuple[str, Fused]]:
    """flash-attn first: where a user installed it, it is the newer kernel for their GPU."""
    modules = {"flash_attn": _flash_attn, "torch.nn.attention.varlen": _torch_varlen}
    return [(name, kernel) for name, kernel in modules.items() if importlib.util.find_spec(name)]


def _flash_attn(
    q: Any, k: Any, v: Any, cu: Any, longest: int, causal: bool, scale: float | None, window: Window
) -> torch.Tensor:
    flash = importlib.import_module("flash_attn").flash_attn_varlen_func
    options = {"softmax_scale": scale, "causal": causal, "window_size": _sides(window, False)}
    out: torch.Tensor = flash(q, k, v, cu, cu, longest, longest, **options)
    return out


def _torch_varlen(
    q: Any, k: Any, v: Any, cu: Any, longest: int, causal: bool, scale: float | None, window: Window
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: Any = {"scale": scale, "window_size": _sides(window, causal), "enable_gqa": q.shape[1] != k.shape[1]}
    out: torch.Tensor = varlen_attn(q, k, v, cu, cu, longest, longest, **options)
    return out


def _sides(window: Window, causal: bool) -> tuple[int, int]:
    """Tokens to the left and to the right that are seen, by the convention of both kernels: -1 = all."""
    reach = -1 if not window else window - 1
    return reach, 0 if causal else reach


@torch.no_grad()
def _difference(
    kernel: Fused, device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int
) -> float:
    """Largest difference between kernel and reference, causal or not, as a share of the reference's largest value."""
    generator = torch.Generator(device).manual_seed(0)
    bounds = np.cumsum([0, *CHECK_LENGTHS])
    q, k, v = (
        torch.randn(1, heads, int(bounds[-1]), head_dim, generator=generator, device=device, dtype=dtype)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    cu = torch.tensor(bounds, dtype=torch.int32, device=device)
    worst = 0.0
    for causal in (True, False):
        expected = per_segment(q, k, v, bounds.tolist(), causal, None, None, 0.0)[0].float()
        found = kernel(*(t[0].transpose(0, 1) for t in (q, k, v)), cu, max(CHECK_LENGTHS), causal, None, None).float()
        worst = max(worst, ((found - expected).abs().max() / expected.abs().max()).item())
    return worst


FILLER = 64
"""Tokens of a padding segment: short, because attention is quadratic, and no model has fewer positions."""


def packed(segments: Sequence[np.ndarray], device: torch.device | str = "cpu", multiple: int = 1) -> dict[str, Any]:
    """Model inputs for one pack of `segments`, one after the other, padded with short segments of id 0 to `multiple`.

    Micro-example: lengths 3, 2 -> position_ids [0, 1, 2, 0, 1], cu_seq_lens [0, 3, 5].
    """
    if missing := -sum(map(len, segments)) % multiple:
        segments = [*segments, *(np.zeros(min(FILLER, missing - i), np.int64) for i in range(0, missing, FILLER))]
    lengths = [len(s) for s in segments]
    bounds = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    return {
        "input_ids": torch.from_numpy(np.concatenate(segments).astype(np.int64))[None].to(device),
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None].to(device),
        "attention_mask": None,
        "use_cache": False,
        # On the host for the loop over segments, on the device for a fused kernel: one transfer per forward.
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds.to(device),
        "max_length_q": max(lengths),
    }


def alone(segment: np.ndarray, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Model inputs for one segment as plain transformers reads it: no positions, no bounds, no padding."""
    return {"input_ids": torch.from_numpy(segment.astype(np.int64))[None].to(device), "use_cache": False}
