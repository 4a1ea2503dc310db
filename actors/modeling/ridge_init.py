"""Ridge-initialized heads: ridge regression of the labels on frozen features, before fine-tuning moves the features.

Fine-tuning from random heads first distorts the features; from fitted heads it starts where linear probing ends
(arXiv 2202.10054). Knows no model and no rows: it gets features and labels, batch by batch.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass
class _Sums:
    """Moments of the features of the examples that have a label, in float64."""

    weight: torch.Tensor
    x_D: torch.Tensor
    xx_DD: torch.Tensor
    y: torch.Tensor
    xy_D: torch.Tensor

    @classmethod
    def zero(cls, width: int) -> "_Sums":
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(zeros(), zeros(width), zeros(width, width), zeros(), zeros(width))

    def add(self, x_SD: torch.Tensor, y_S: torch.Tensor, weight_S: torch.Tensor) -> None:
        weighted_SD = weight_S[:, None] * x_SD
        self.weight += weight_S.sum()
        self.x_D += weighted_SD.sum(0)
        self.xx_DD += weighted_SD.T @ x_SD
        self.y += weight_S @ y_S
        self.xy_D += weighted_SD.T @ y_S

    def all_reduce(self) -> None:
        for tensor in vars(self).values():
            dist.all_reduce(tensor)


class RidgeHeads:
    """Collects features and labels of every rank, then fits the heads' weights."""

    def __init__(self, width: int, num_attributes: int):
        self._attributes = [_Sums.zero(width) for _ in range(num_attributes)]
        self._all = _Sums.zero(width)

    def add(self, hidden_SD: torch.Tensor, values_SA: torch.Tensor, weights_SA: torch.Tensor) -> None:
        """Features at the positions read, labels, and the weight of each label (0 = no label)."""
        x_SD, y_SA, weights_SA = (t.detach().cpu().double() for t in (hidden_SD, values_SA, weights_SA))
        for attribute, sums in enumerate(self._attributes):
            # A weight per attribute only scales its own fit, and a penalty per example is scaled alike.
            sums.add(x_SD, y_SA[:, attribute], (weights_SA[:, attribute] > 0).double())
        ones_S = torch.ones(len(x_SD), dtype=torch.float64)
        self._all.add(x_SD, ones_S, ones_S)

    def weights(self, penalty: float) -> torch.Tensor:
        """Bias-free heads, float32 [A, D]; zeros for an attribute without labels.

        `penalty` is per example, on standardized features. A decoder's `score` has no bias, so the direction in which
        the features are most nearly constant carries the mean of the labels.
        """
        if dist.is_initialized():
            for sums in (*self._attributes, self._all):
                sums.all_reduce()
        constant_D = _constant(self._all, penalty)
        zeros_D = torch.zeros_like(constant_D)
        heads = [_fit(s, penalty, constant_D) if s.weight > 1 else zeros_D for s in self._attributes]
        return torch.stack(heads).float()


def _mean_and_std(sums: _Sums) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature, [D] each."""
    mean_D = sums.x_D / sums.weight
    variance_D = (sums.xx_DD.diagonal() / sums.weight - mean_D**2).clamp_min(0)
    return mean_D, variance_D.sqrt() + 1e-9


def _constant(sums: _Sums, penalty: float) -> torch.Tensor:
    """The direction whose product with the features is closest to 1, [D]; the mean of the product is exactly 1.

    Fitted with a hundredth of the penalty: the variance that remains is noise in every score.
    """
    mean_D, std_D = _mean_and_std(sums)
    constant_D = torch.linalg.solve(sums.xx_DD + 0.01 * penalty * sums.weight * torch.diag(std_D**2), sums.x_D)
    return constant_D / (mean_D @ constant_D)


def _fit(sums: _Sums, penalty: float, constant_D: torch.Tensor) -> torch.Tensor:
    mean_D, std_D = _mean_and_std(sums)
    mean = sums.y / sums.weight
    covariance_DD = sums.xx_DD - sums.weight * torch.outer(mean_D, mean_D)
    ridge_DD = covariance_DD + penalty * sums.weight * torch.diag(std_D**2)
    slope_D = torch.linalg.solve(ridge_DD, sums.xy_D - sums.weight * mean * mean_D)
    return slope_D + (mean - slope_D @ mean_D) * constant_D
