"""Are two models the same base? A fingerprint of weights that survives a conversion, added tokens, and bfloat16.

Knows no adapter and no folder.
"""

import hashlib

import torch
from transformers import PreTrainedModel

SAMPLED = 65_536
"""Values of each weight that enter: training changes nearly all of them, and a large model is read in a moment."""
FIRST_TOKENS = 256
"""Rows of the vocabulary that enter: every model has so many, whatever tokens are added at its end."""


@torch.inference_mode()
def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits; the same for equal weights in float32 and bfloat16, on any device."""
    found, vocabulary = hashlib.sha256(), vocabulary_names(model)
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        values_N = (tensor[:FIRST_TOKENS] if name in vocabulary else tensor).reshape(-1)
        step = -(-values_N.numel() // SAMPLED) or 1
        found.update(name.encode())
        found.update(values_N[::step].bfloat16().contiguous().cpu().view(torch.int16).numpy().tobytes())
    return found.hexdigest()[:16]


def vocabulary_names(model: PreTrainedModel) -> set[str]:
    """The names of the embeddings' weights, input and output, tied or not."""
    layers = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {f"{name}.weight" for name, module in model.named_modules(remove_duplicate=False) if id(module) in layers}
