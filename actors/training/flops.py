"""Floating-point operations of a training step. Source: PaLM (arXiv 2204.02311), appendix B.

Recomputation for activation checkpointing does not count.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Arithmetic:
    """The sizes of a model that its operations per token depend on."""

    body: int
    """Parameters outside the vocabulary's matrices; of experts those that a token reaches."""
    trained: int
    """Those of them that are trained."""
    head: int
    """Parameters of the output layer, which only the trained tokens reach."""
    attention: int
    """Layers times width."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Arithmetic":
        """Works on sharded weights too."""
        config = model.config.get_text_config()
        output = model.get_output_embeddings()
        head = list(output.parameters()) if output is not None else []
        vocabulary = {id(p) for p in (*model.get_input_embeddings().parameters(), *head)}
        body = [p for p in model.parameters() if id(p) not in vocabulary]
        trained = [p for p in body if p.requires_grad]
        idle = _idle_shares(model)
        num_body, num_trained, num_head = (
            round(sum(num_elements(p) * (1 - idle.get(id(p), 0.0)) for p in group)) for group in (body, trained, head)
        )
        return cls(num_body, num_trained, num_head, config.num_hidden_layers * config.hidden_size)

    def flops(self, tokens: int, targets: float, squares: float) -> float:
        """Forward and backward over `tokens`, `targets` of which reach the vocabulary.

        `squares` is the sum of the squared lengths.
        """
        # A multiplication and an addition per weight: forward, for the activations' gradient, for a trained weight's.
        return tokens * (4 * self.body + 2 * self.trained) + 6 * targets * self.head + 6 * self.attention * squares


def _idle_shares(model: PreTrainedModel) -> dict[int, float]:
    """By id, of the parameters of a layer of experts: the share that a token does not reach."""
    config = model.config.get_text_config()
    num_chosen = getattr(config, "num_experts_per_tok", None)
    if not num_chosen:
        return {}
    stacked = [
        (p, module.num_experts)
        for module in model.modules()
        if isinstance(getattr(module, "num_experts", None), int)
        for p in module.parameters(recurse=False)
        if len(shape := getattr(p, "ds_shape", p.shape)) == 3 and shape[0] == module.num_experts
    ]
    return {id(p): max(0.0, 1 - num_chosen / num_experts) for p, num_experts in stacked}


def num_elements(parameter: torch.nn.Parameter) -> int:
    """Of the whole parameter, sharded or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
