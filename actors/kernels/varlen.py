"""Packs for any transformers model: several conversations in one sequence, none sees another, no padding is computed.

Knows no model and no loss. The trap it avoids: transformers finds the segments of a pack only if `attention_mask` and
the cache are both absent; otherwise segments silently see each other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from actors.kernels.extra_arguments import Extras
from actors.kernels.fused_attention import FUSED, FUSED_DTYPES, Fused, fused_kernel, kernel_names
from actors.kernels.segment_attention import Window, of_reads, per_segment
from actors.kernels.transfer import to_device
from data.errors import UserError

VARLEN = "varlen"
READS = "reads"
"""Attribute of an attention module: the only positions wanted (`actors.kernels.last_layer`), int64 [S] on the host."""


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
    fused, dtype = (None, query.dtype) if extras else _kernel_for(query, key, value, dropout, sliding_window)
    if fused:
        # Rotary positions were applied in the dtype of query and key, fp32 in training; only the kernel rounds.
        qkv_THd = [t[0].transpose(0, 1).to(dtype) for t in (query, key, value)]
        out_THd = fused(*qkv_THd, cu_seq_lens_k, max_length_q, causal, scaling, sliding_window)
        return out_THd[None], None
    bounds = cu_seq_lens_q.tolist()
    reads_S = getattr(module, READS, None)
    if reads_S is not None and not sliding_window and not extras:
        return of_reads(query, key, value, bounds, reads_S, causal, scaling), None
    return per_segment(query, key, value, bounds, causal, scaling, sliding_window, dropout, extras), None


AttentionInterface.register(VARLEN, varlen)


def _kernel_for(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, window: Window
) -> tuple[Fused | None, torch.dtype]:
    """The fused kernel for these tensors, or None; and the dtype that it gets: autocast's where that is on."""
    kind, dtype = query.device.type, query.dtype
    if kind not in FUSED or dropout or value.shape[3] != query.shape[3]:
        return None, dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    if dtype not in FUSED_DTYPES:
        return None, dtype
    heads = query.shape[1], key.shape[1], query.shape[3]
    return fused_kernel(query.device, dtype, *heads, torch.is_grad_enabled(), bool(window)), dtype


def kernel_name(config: Any, device: torch.device, dtype: torch.dtype, backward: bool = False) -> str:
    """The attention kernel of a model of `config` on `device`, for a log line; `dtype` is autocast's where it is on."""
    if config._attn_implementation != VARLEN:
        return f"{config._attn_implementation}, one segment per forward"
    text = config.get_text_config()
    if device.type in FUSED and dtype in FUSED_DTYPES and getattr(text, "num_attention_heads", None):
        num_heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
        num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
        windows = (False, True) if getattr(text, "sliding_window", None) else (False,)
        heads = num_heads, num_kv_heads, head_dim
        # Each kind is tried now, not in the middle of the first forward.
        found = [fused_kernel(device, dtype, *heads, backward, windowed) for windowed in windows]
        if fused := found[0]:
            in_windows = "" if found[-1] else "; in sliding windows one SDPA call per segment"
            return f"{kernel_names()[fused]}, a fused variable-length kernel{in_windows}"
    return "one SDPA call per segment"


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
        "input_ids": to_device(np.concatenate(segments).astype(np.int64)[None], device),
        "position_ids": to_device(np.concatenate([np.arange(n) for n in lengths])[None], device),
        "attention_mask": None,
        "use_cache": False,
        # On the host for the loop over segments, on the device for a fused kernel: one transfer per forward.
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": to_device(bounds, device),
        "max_length_q": max(lengths),
    }


def alone(segment: np.ndarray, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Model inputs for one segment as plain transformers reads it: no positions, no bounds, no padding."""
    return {"input_ids": to_device(segment.astype(np.int64)[None], device), "use_cache": False}
