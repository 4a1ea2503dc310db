"""Attention under the mask that transformers makes, with soft caps and sinks, for one conversation or one KV cache.

transformers' own SDPA ignores both. Knows no packs: `actors.kernels.varlen` has them.
"""

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from actors.kernels.extra_arguments import Extras, plain_attention

MASKED = "masked"


def masked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[B, heads, T, d] on [B, kv_heads, L, d] -> [B, T, heads, d]; the mask has the window.

    Raises UserError for an argument that it cannot compute.
    """
    extras = Extras.of(module, kwargs)
    if not extras:
        arguments: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    tokens, columns = query.shape[2], key.shape[2]
    if attention_mask is None and causal and tokens > 1:
        own = torch.ones(tokens, columns, dtype=torch.bool, device=query.device)
        attention_mask = own.tril(columns - tokens)[None, None]
    out = plain_attention(query, key, value, attention_mask, scaling, dropout, extras)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(MASKED, masked)
AttentionMaskInterface.register(MASKED, sdpa_mask)
