"""What models pass to their attention beside queries, keys and values: computed, known as harmless, or refused by name.

A kernel that swallowed an argument it does not know would train another model than the one that was published. Knows no
packs and no caches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data.errors import UserError

HARMLESS = {
    "sliding_window": "where a mask is given, it has the window; packs take it as an argument of their own",
    "is_causal": "the same",
    "position_ids": "queries and keys are rotated before they come here",
    "cache_position": "the cache is updated before keys and values come here",
    "past_key_values": "the same",
    "past_key_value": "the same",
    "use_cache": "the same",
    "cu_seq_lens_q": "bounds of segments: where a mask is given, it has them",
    "cu_seq_lens_k": "the same",
    "max_length_q": "length of the longest segment: only fused kernels need it",
    "max_length_k": "the same",
    "seq_idx": "the segment of each token, for layers without attention; the bounds say the same",
    "output_attentions": "asks for the weights beside the result, which no caller here reads",
    "output_hidden_states": "read by the model's outer layers",
    "output_router_logits": "the same",
    "return_dict": "the same",
    "logits_to_keep": "the same",
    "num_items_in_batch": "read by transformers' own loss, which is not used",
    "deterministic": "the order of sums in flash-attention's backward pass",
    "target_dtype": "the dtype that flash-attention casts to; ours computes in that of its inputs",
}
"""Arguments that do not change the result, and why."""


@dataclass(frozen=True)
class Extras:
    """What changes attention's scores beside the mask."""

    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap) before the mask (Gemma 2, arXiv 2408.00118)."""
    sinks_H: torch.Tensor | None = None
    """A logit for each head that takes part in the softmax and has no value (gpt-oss, arXiv 2309.17453)."""

    def __bool__(self) -> bool:
        return self.softcap is not None or self.sinks_H is not None

    @classmethod
    def of(cls, module: torch.nn.Module, arguments: Mapping[str, Any]) -> "Extras":
        """Raises UserError, with names, for arguments that are neither computed nor known as harmless."""
        given = {name: value for name, value in arguments.items() if value is not None and name not in HARMLESS}
        found = cls(given.pop("softcap", None), given.pop("s_aux", None))
        if given:
            raise UserError(
                f"{type(module).__name__} passes {', '.join(sorted(given))} to its attention, which may change the "
                "result and is not computed here"
            )
        return found


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    dropout: float,
    extras: Extras,
) -> torch.Tensor:
    """Attention by matrix products, [B, heads, T, d] on [B, kv_heads, L, d] -> [B, heads, T, d]; no gradient is lost.

    `mask` is bool (true = seen) or added to the scores, [B or 1, heads or 1, T, L].
    """
    rows, heads, tokens, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(rows, kv_heads, heads // kv_heads * tokens, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)) * (width**-0.5 if scale is None else scale)
    scores = scores.view(rows, heads, tokens, key.shape[2]).float()
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if extras.sinks_H is not None:
        sinks = extras.sinks_H.float().view(1, heads, 1, 1).expand(rows, heads, tokens, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    weights = torch.nn.functional.dropout(weights, dropout)
    grouped = weights.view(rows, kv_heads, heads // kv_heads * tokens, key.shape[2])
    return torch.matmul(grouped, value).view(rows, heads, tokens, value.shape[3])
