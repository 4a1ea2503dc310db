"""How much arithmetic a training step is. Source: PaLM (arXiv 2204.02311), appendix B; recomputation for activation checkpointing does not count."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Arithmetic:
    """Of one model, per token."""

    body: int
    """Parameters outside the vocabulary's matrices."""
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
        vocabulary = {
            id(p) for layer in (model.get_input_embeddings(), output) if layer is not None for p in layer.parameters()
        }
        body = [p for p in model.parameters() if id(p) not in vocabulary]
        head = sum(map(_numel, output.parameters())) if output is not None else 0
        return cls(
            sum(map(_numel, body)),
            sum(_numel(p) for p in body if p.requires_grad),
            head,
            config.num_hidden_layers * config.hidden_size,
        )

    def flops(self, tokens: int, targets: float, squares: float) -> float:
        """Forward and backward over `tokens`, `targets` of which reach the vocabulary; `squares` is the sum of the squared lengths."""
        # A multiplication and an addition for each weight: forward, for the gradient of the activations, and for that of the weight if it is trained.
        return tokens * (4 * self.body + 2 * self.trained) + 6 * targets * self.head + 6 * self.attention * squares


def _numel(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
