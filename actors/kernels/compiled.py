"""torch.compile of a model's layers, one by one. Knows no model."""

import torch
from transformers import AttentionInterface, PreTrainedModel

from actors.kernels.varlen import VARLEN, varlen


def compile_layers(model: PreTrainedModel) -> int:
    """Let each decoder layer be compiled at its first forward; returns their number. State dict and names stay.

    Attention over segments stays outside: it has its own kernel, and its loop over segments would be unrolled anew for
    every pack.
    """
    AttentionInterface.register(VARLEN, torch.compiler.disable(varlen))
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    for layer in layers:
        layer.compile(dynamic=True)  # packs differ in length
    return len(layers)
