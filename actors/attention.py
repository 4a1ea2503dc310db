"""Packed rows for any transformers model: several conversations in one row, none seeing another, no padding computed.

Knows no model and no loss. The trap it exists for: transformers finds the segments of a packed row by itself only if
`attention_mask` and the cache are both absent; otherwise segments silently see each other.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

VARLEN = "varlen_sdpa"


def varlen_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each segment [cu[i], cu[i+1]) of the one row; shapes [1, heads, T, head_dim] -> [1, T, heads, head_dim].

    One SDPA call a segment, on a CPU and on a GPU alike: no T x T mask is ever built, and a segment's numbers do not depend on its neighbours.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    bounds = cu_seq_lens_q.tolist()
    parts = [
        torch.nn.functional.scaled_dot_product_attention(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], dropout_p=dropout, is_causal=True, scale=scaling)
        for a, b in itertools.pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(VARLEN, varlen_sdpa)


def packed(segments: Sequence[np.ndarray], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Model inputs for one row that holds `segments` one after the other.

    Micro-example: lengths 3, 2 -> position_ids [0, 1, 2, 0, 1], cu_seq_lens [0, 3, 5].
    """
    lengths = [len(s) for s in segments]
    return {
        "input_ids": torch.from_numpy(np.concatenate(segments).astype(np.int64))[None].to(device),
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None].to(device),
        "attention_mask": None,
        "use_cache": False,
        # Stays on the host, where the loop over segments reads it in every layer.
        "cu_seq_lens_q": torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
    }
