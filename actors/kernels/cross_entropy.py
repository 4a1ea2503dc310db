"""Cross-entropy over a large vocabulary without all its logits: they exist for some positions at a time.

The gradients are made together with the loss, so no logit is computed twice: what is kept for the backward pass is the
gradient of the hidden states and of the output layer's weights. Source of the order: Liger Kernel (arXiv 2410.10989).
Knows no model.
"""

from dataclasses import dataclass
from typing import Any

import torch

from actors.kernels.onednn import ROWS, multiply

IGNORED = -100
"""The target of a padding position."""
CHUNK_LOGITS = 2**26
"""Logits that exist at a time, 256 MiB in fp32. Smaller losses take torch's own path over all logits."""
SUMMED_WEIGHTS = 2**24
"""Gradients of weights that are added up at a time."""


@dataclass(frozen=True)
class LogitMap:
    """What a model does to the logits after the output layer: cap * tanh(scale * z / cap); no cap = scale * z."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """In place where no gradient flows."""
        if self.scale != 1.0:
            logits = logits * self.scale if logits.requires_grad else logits.mul_(self.scale)
        if self.cap is None:
            return logits
        if logits.requires_grad:
            return (logits / self.cap).tanh() * self.cap
        return logits.div_(self.cap).tanh_().mul_(self.cap)

    def gradient_(self, gradient: torch.Tensor, mapped: torch.Tensor) -> torch.Tensor:
        """In place: the gradient of the raw logits from that of the `mapped` ones."""
        if self.cap is not None:
            gradient.mul_(1 - (mapped / self.cap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


def fits(num_targets: int, num_tokens: int) -> bool:
    """Are the logits of so many targets so few that they may exist whole?"""
    return num_targets * num_tokens <= CHUNK_LOGITS


def summed_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    logit_map: LogitMap | None = None,
    num_tokens: int | None = None,
    factors_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed negative log-likelihood of `targets_N` in nats, a scalar, and that of each [N], without a gradient.

    Only the first `num_tokens` entries of the vocabulary count (None = all); a target of IGNORED counts nothing. The
    sum takes each target as often as `factors_N` says (None = once); no gradient flows to them.
    """
    num_tokens = num_tokens or len(weight_VD)
    learns = torch.is_grad_enabled()  # inside the function it never is
    options = logit_map or LogitMap(), num_tokens, learns
    total, nats_N = _Chunked.apply(hidden_ND, weight_VD, bias_V, targets_N, factors_N, *options)
    return total, nats_N


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        factors_N: torch.Tensor | None,
        logit_map: LogitMap,
        num_tokens: int,
        learns: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = _Sums(hidden_ND, weight_VD, bias_V, tuple(learns and needs for needs in ctx.needs_input_grad[:3]))
        step = max(ROWS, CHUNK_LOGITS // len(weight_VD) // ROWS * ROWS)
        chunks = [slice(at, at + step) for at in range(0, len(targets_N), step)]
        nats = [
            sums.add(rows, targets_N[rows], None if factors_N is None else factors_N[rows], logit_map, num_tokens)
            for rows in chunks
        ]
        nats_N = torch.cat(nats) if nats else targets_N.new_zeros(0, dtype=torch.float32)
        ctx.gradients = sums.gradients()
        ctx.mark_non_differentiable(nats_N)
        return (nats_N if factors_N is None else nats_N * factors_N).sum(), nats_N

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, ()  # the weight's is large: freed as soon as it has been added
        return (*(None if g is None else g.mul_(gradient.to(g.dtype)) for g in gradients), *[None] * 5)


class _Sums:
    """The loss and its gradients over the chunks."""

    def __init__(
        self, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, needs: tuple[bool, ...]
    ):
        kind = hidden_ND.device.type
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if casts else hidden_ND.dtype
        self.dtypes = [None if t is None else t.dtype for t in (hidden_ND, weight_VD, bias_V)]
        self.hidden_ND, self.weight_VD = hidden_ND.detach().to(dtype), weight_VD.detach().to(dtype)
        self.bias_V = None if bias_V is None else bias_V.detach().float()
        self.of_hidden = torch.empty_like(hidden_ND) if needs[0] else None
        # Summed in fp32 over the chunks, whatever the products are in.
        self.of_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs[1] else None
        self.of_bias = torch.zeros_like(self.bias_V) if needs[2] and self.bias_V is not None else None

    def add(
        self,
        rows: slice,
        targets_n: torch.Tensor,
        factors_n: torch.Tensor | None,
        logit_map: LogitMap,
        num_tokens: int,
    ) -> torch.Tensor:
        """Add the gradients of a chunk; returns the loss of each of its positions, without its factor."""
        logits_nV = multiply(self.hidden_ND[rows], self.weight_VD).float()
        if self.bias_V is not None:
            logits_nV += self.bias_V
        mapped_nV = logit_map(logits_nV)
        mapped_nV[:, num_tokens:] = -torch.inf
        counts_n = targets_n != IGNORED
        chosen_n1 = targets_n.where(counts_n, 0)[:, None]
        highest_n1 = mapped_nV.amax(1, keepdim=True)
        keeps = logit_map.cap is not None and (self.of_hidden is not None or self.of_weight is not None)
        capped_nV = mapped_nV.clone() if keeps else mapped_nV
        at_target_n1 = mapped_nV.gather(1, chosen_n1)
        exps_nV = mapped_nV.sub_(highest_n1).exp_()
        sums_n1 = exps_nV.sum(1, keepdim=True)
        nats_n = (sums_n1.log() + highest_n1 - at_target_n1)[:, 0] * counts_n
        if self.of_hidden is not None or self.of_weight is not None:
            gradient_nV = exps_nV.div_(sums_n1)
            gradient_nV.scatter_add_(1, chosen_n1, -torch.ones_like(sums_n1))
            capped_nV[:, num_tokens:] = 0  # not a capped value: its gradient is 0 all the same
            each_n = counts_n if factors_n is None else counts_n * factors_n
            self._add_gradients(rows, logit_map.gradient_(gradient_nV.mul_(each_n[:, None]), capped_nV))
        return nats_n

    def _add_gradients(self, rows: slice, gradient_nV: torch.Tensor) -> None:
        if self.of_bias is not None:
            self.of_bias += gradient_nV.sum(0)
        gradient_nV = gradient_nV.to(self.weight_VD.dtype)
        if self.of_hidden is not None:
            self.of_hidden[rows] = multiply(gradient_nV, self.weight_VD.t())
        if self.of_weight is not None:
            hidden_Dn, step = self.hidden_ND[rows].t(), max(ROWS, SUMMED_WEIGHTS // self.hidden_ND.shape[1])
            for at in range(0, len(self.of_weight), step):  # at once, a second copy of the weights would be made
                self.of_weight[at : at + step] += multiply(gradient_nV[:, at : at + step].t(), hidden_Dn)

    def gradients(self) -> tuple[torch.Tensor | None, ...]:
        found = (self.of_hidden, self.of_weight, self.of_bias)
        return tuple(None if g is None else g.to(dtype) for g, dtype in zip(found, self.dtypes, strict=True))
