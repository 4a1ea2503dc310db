"""Classifier-free guidance: the next token's logits from those after two prompts, one of them without the request.

Knows no model, no text and no engine. Source: Sanchez et al. 2023, arXiv 2306.17806:
log p = log p(unguided) + guidance * (log p(own) - log p(unguided)).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GuidedRow:
    """Where the logits of a guided request are."""

    own: int
    """Row of its own prompt."""
    unguided: int
    """Row of the prompt that it is guided away from."""
    guidance: float


def guided(logits_RV: torch.Tensor, rows: Sequence[GuidedRow]) -> torch.Tensor:
    """`logits_RV` with the own row of each of `rows` replaced by its guided one; the very tensor if there are none.

    The difference is one of log-probabilities, as in the paper: a row's logits are only known up to a constant, and
    that constant is another one after another prompt. The constant of the own row is kept, which changes no
    probability: the repetition penalty looks at the sign of a logit, and so meets the model's own scale, as it does
    without guidance. In fp32 if any row is guided; a token that either prompt makes impossible stays as its own row has
    it.

    Micro-example: own [2, 0], unguided [1, 1], guidance 2 -> log p own [-0.13, -2.13], unguided [-0.69, -0.69];
    [2 + 0.57, 0 - 1.43].
    """
    if not rows:
        return logits_RV
    logits_RV = logits_RV.float()
    own_GV = logits_RV[[row.own for row in rows]]
    unguided_GV = logits_RV[[row.unguided for row in rows]]
    beyond_G1 = torch.tensor([[row.guidance - 1] for row in rows], device=logits_RV.device)
    moved_GV = own_GV + beyond_G1 * (own_GV.log_softmax(dim=-1) - unguided_GV.log_softmax(dim=-1))
    possible_GV = (own_GV > -torch.inf) & (unguided_GV > -torch.inf)
    guided_RV = logits_RV.clone()
    guided_RV[[row.own for row in rows]] = moved_GV.where(possible_GV, own_GV)
    return guided_RV
