"""Sample one token for each row of logits, by the row's own rule and random numbers. Knows no model and no engine."""

from collections.abc import Sequence

import numpy as np
import torch

from actors.generation.protocol import Sampling


def sample(logits_BV: torch.Tensor, samplings: Sequence[Sampling], rngs: Sequence[np.random.Generator]) -> list[int]:
    """One token per row: temperature, min-p, top-k, top-p, then inverse-CDF sampling by the row's random number.

    A row's token does not depend on the other rows. Only rows with top-k or top-p are ranked: sorting a vocabulary
    takes longer than a small model's forward.
    """
    tokens = logits_BV.argmax(dim=-1).tolist()
    drawn = [i for i, s in enumerate(samplings) if s.temperature > 0]
    free = [i for i in drawn if not samplings[i].top_k and samplings[i].top_p == 1]
    ranked = [i for i in drawn if i not in free]
    for rows, rank in ((free, False), (ranked, True)):
        if rows:
            chosen = _drawn(logits_BV[rows], [samplings[i] for i in rows], [rngs[i] for i in rows], rank)
            for i, token in zip(rows, chosen, strict=True):
                tokens[i] = token
    return tokens


def _drawn(
    logits_RV: torch.Tensor, samplings: Sequence[Sampling], rngs: Sequence[np.random.Generator], rank: bool
) -> list[int]:
    temperature_R1 = torch.tensor([[s.temperature] for s in samplings], device=logits_RV.device)
    scaled_RV, order_RC = logits_RV.float() / temperature_R1.clamp_min(1e-4), None
    if any(s.min_p for s in samplings):
        scaled_RV = _likely(scaled_RV, samplings)
    if rank:
        vocabulary = logits_RV.shape[-1]
        most = max(min(s.top_k or vocabulary, vocabulary) for s in samplings)
        scaled_RV, order_RC = scaled_RV.topk(most, dim=-1)
    probs_RC = _allowed(scaled_RV, samplings) if rank else scaled_RV.softmax(dim=-1)
    cumulative_RC = probs_RC.cumsum(dim=-1)
    uniform_R1 = torch.tensor([[rng.random()] for rng in rngs], device=logits_RV.device, dtype=cumulative_RC.dtype)
    places_R1 = torch.searchsorted(cumulative_RC, uniform_R1 * cumulative_RC[:, -1:], right=True)
    # Rounding may put a draw behind the last token that has any probability.
    last_R1 = probs_RC.shape[-1] - 1 - (probs_RC.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
    places_R1 = places_R1.minimum(last_R1)
    found_R1 = places_R1 if order_RC is None else order_RC.gather(1, places_R1)
    return [int(token) for token in found_R1[:, 0]]


def _likely(scaled_RV: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """-inf for tokens below the row's min_p times the likeliest one's probability; rows without it stay as they are."""
    min_p_R1 = torch.tensor([[s.min_p] for s in samplings], device=scaled_RV.device)
    return scaled_RV.masked_fill(scaled_RV < scaled_RV.amax(dim=-1, keepdim=True) + min_p_R1.log(), -torch.inf)


def _allowed(ranked_RC: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities of ranked tokens, 0 for those that top-k and top-p leave out."""
    columns = ranked_RC.shape[-1]
    top_k_R1 = torch.tensor([[s.top_k or columns] for s in samplings], device=ranked_RC.device)
    outside_RC = torch.arange(columns, device=ranked_RC.device)[None] >= top_k_R1
    probs_RC = ranked_RC.masked_fill(outside_RC, -torch.inf).softmax(dim=-1)
    top_p_R1 = torch.tensor([[s.top_p] for s in samplings], device=ranked_RC.device)
    # A token is kept while the mass before it is below top_p.
    within_RC = probs_RC.cumsum(dim=-1) - probs_RC < top_p_R1
    within_RC[:, 0] = True  # also where top_p is so small that it is 0 in float32
    return probs_RC * within_RC
