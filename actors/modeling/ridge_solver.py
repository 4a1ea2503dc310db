"""Weighted ridge regressions for many penalties, and their errors by cross-validation over sets of features.

Source: Hoerl and Kennard 1970; the dual form, which is smaller where features outnumber examples, Saunders et al. 1998.
Knows no heads and no layers.
"""

from collections.abc import Sequence

import torch


def solved(
    x_NF: torch.Tensor, y_NA: torch.Tensor, weight_N: torch.Tensor, penalties: Sequence[float]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each penalty the slopes [F, A] and intercepts [A] of weighted ridge regressions; float64 in and out.

    They minimize sum(weight (x slope + intercept - y)^2) + penalty F sum(weight) slope^2, by the smaller of both normal
    equations: one for each feature, or one for each example.
    """
    total, features = weight_N.sum(), x_NF.shape[1]
    x_mean_F, y_mean_A = weight_N @ x_NF / total, weight_N @ y_NA / total
    root_N1 = weight_N.sqrt()[:, None]
    x_NF, y_NA = root_N1 * (x_NF - x_mean_F), root_N1 * (y_NA - y_mean_A)
    is_dual = len(x_NF) < features
    gram = x_NF @ x_NF.T if is_dual else x_NF.T @ x_NF
    right = y_NA if is_dual else x_NF.T @ y_NA
    found = []
    for penalty in penalties:
        solution = _solution(gram, penalty * features * float(total), right)
        slope_FA = x_NF.T @ solution if is_dual else solution
        found.append((slope_FA, y_mean_A - x_mean_F @ slope_FA))
    return found


class CrossValidation:
    """Examples in folds, their features in blocks of equal width."""

    def __init__(
        self, x_NF: torch.Tensor, y_NA: torch.Tensor, weight_N: torch.Tensor, fold_N: torch.Tensor, width: int
    ):
        """`x_NF` is float32, the others float64 (folds int64)."""
        self.x_NF, self.y_NA, self.weight_N, self.fold_N, self.width = x_NF, y_NA, weight_N, fold_N, width
        self._is_dual = len(x_NF) < x_NF.shape[1]
        self._kernels: dict[int, torch.Tensor] = {}

    def errors(self, blocks: Sequence[int], penalties: Sequence[float]) -> torch.Tensor:
        """Weighted mean squared error on the folds that a fit to these blocks did not see, [P, A]."""
        kernel_NN = sum((self._kernel(b) for b in blocks), torch.zeros(())).double() if self._is_dual else None
        total_PA, weight = torch.zeros(len(penalties), self.y_NA.shape[1], dtype=torch.float64), 0.0
        for fold in self.fold_N.unique():
            held = torch.nonzero(self.fold_N == fold)[:, 0]
            rest = torch.nonzero(self.fold_N != fold)[:, 0]
            if not len(rest):
                break  # nothing is left to fit to: every penalty is as good as the others
            if kernel_NN is None:
                found = self._by_features(blocks, rest, held, penalties)
            else:
                found = self._by_kernel(kernel_NN, len(blocks) * self.width, rest, held, penalties)
            for number, predicted_HA in enumerate(found):
                total_PA[number] += self.weight_N[held] @ (predicted_HA - self.y_NA[held]) ** 2
            weight += float(self.weight_N[held].sum())
        return total_PA / max(weight, 1e-300)

    def _kernel(self, block: int) -> torch.Tensor:
        """Products of the features of two examples; float32 is exact enough to compare penalties."""
        if block not in self._kernels:
            x_Nf = self.x_NF[:, block * self.width : (block + 1) * self.width]
            self._kernels[block] = x_Nf @ x_Nf.T
        return self._kernels[block]

    def _by_features(
        self, blocks: Sequence[int], rest: torch.Tensor, held: torch.Tensor, penalties: Sequence[float]
    ) -> list[torch.Tensor]:
        columns = torch.cat([torch.arange(b * self.width, (b + 1) * self.width) for b in blocks])
        x_Nf = self.x_NF[:, columns].double()
        found = solved(x_Nf[rest], self.y_NA[rest], self.weight_N[rest], penalties)
        return [x_Nf[held] @ slope_fA + intercept_A for slope_fA, intercept_A in found]

    def _by_kernel(
        self,
        kernel_NN: torch.Tensor,
        features: int,
        rest: torch.Tensor,
        held: torch.Tensor,
        penalties: Sequence[float],
    ) -> list[torch.Tensor]:
        """The dual form without a look at the features: they are centered in their products."""
        weight_R = self.weight_N[rest]
        total = float(weight_R.sum())
        share_R, root_R1 = weight_R / total, weight_R.sqrt()[:, None]
        rows_RR, rows_HR = kernel_NN[rest][:, rest], kernel_NN[held][:, rest]
        mean_R = rows_RR @ share_R
        middle = share_R @ mean_R
        centered_RR = rows_RR - mean_R[:, None] - mean_R + middle
        centered_HR = rows_HR - (rows_HR @ share_R)[:, None] - mean_R + middle
        mean_A = share_R @ self.y_NA[rest]
        gram, right = root_R1 * centered_RR * root_R1.T, root_R1 * (self.y_NA[rest] - mean_A)
        solutions = (_solution(gram, penalty * features * total, right) for penalty in penalties)
        return [centered_HR @ (root_R1 * solution) + mean_A for solution in solutions]


def _solution(gram: torch.Tensor, ridge: float, right: torch.Tensor) -> torch.Tensor:
    """(gram + ridge I)^-1 right."""
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    return torch.cholesky_solve(right, factor)
