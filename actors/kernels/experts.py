"""Mixture-of-experts layers under autocast: the grouped product of transformers, which autocast does not know.

Without this a bf16 training multiplies its experts in fp32. Knows no model.
"""

from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

GROUPED = "grouped_mm"
"""transformers' name for the product that its models take by default."""


class _Cast:
    """A module whose matrices are seen in another dtype; gradients flow back to the module's own."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype):
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        is_matrix = isinstance(found, torch.nn.Parameter) and found.dim() > 1 and found.is_floating_point()
        return found.to(self._dtype) if is_matrix else found


def grouped_experts(
    self: torch.nn.Module, hidden_TD: torch.Tensor, chosen_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """What transformers computes, [T, D], with the experts' products in autocast's dtype where autocast is on."""
    kind = hidden_TD.device.type
    module = _Cast(self, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else self
    mixed_TD: torch.Tensor = grouped_mm_experts_forward(module, hidden_TD, chosen_TK, weights_TK)
    return mixed_TD


def use_grouped_experts() -> None:
    """Let every mixture-of-experts model of this process, loaded or not, take `grouped_experts`."""
    ALL_EXPERTS_FUNCTIONS.register(GROUPED, grouped_experts)
