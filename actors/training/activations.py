"""Bytes that a packed forward keeps for its backward, per token and layer.

Counted on transformers' own layers with `torch.autograd.graph.saved_tensors_hooks` (tests/test_activations.py): the
input and the normalized values of each norm, the inputs of the linear layers, queries, keys, values and the output of
attention, which never stores its matrix, and the feed-forward part's products.
"""

from actors.modeling.model_shape import ModelShape
from actors.modeling.settings import LoraSettings

FP32, BF16 = 4, 2
LOGITS_COPIES = 3
"""fp32 matrices of targets x vocabulary at the start of the backward pass: log-probabilities and two gradients."""


def layer_bytes(shape: ModelShape, precision: str, lora: LoraSettings | None = None) -> float:
    """Of one token in one layer. Norms and the residual stream are fp32 in both precisions."""
    width, (query, key) = shape.width, shape.head_widths
    norms = shape.norms or 2 * width
    # A frozen norm needs its input alone.
    normed = norms * FP32 * (1 if lora else 2)
    bottleneck = lora.rank * sum(lora.adapts(name) for name, _ in shape.linears) / max(shape.layers, 1) if lora else 0
    frozen = bool(lora and shape.experts_per_token)  # adapters go to linear layers, and experts are none
    products = (4 if shape.gated else 2) - (1 if frozen else 0)
    routed = (1 if frozen else 2) * shape.experts_per_token * width
    experts = products * shape.feed_forward + routed
    # Queries, keys, values; attention's output as it comes, and side by side for the output projection.
    attention = 3 * query + 2 * key
    if precision == "fp32":
        return normed + FP32 * (2 * width + attention + experts + bottleneck)
    # Autocast copies the input of each linear layer for itself; experts are outside autocast, in fp32.
    copies = 3 + (2 if shape.gated else 1)
    each = FP32 if shape.experts_per_token else BF16
    return normed + BF16 * (copies * width + attention + bottleneck) + each * experts


def kept_bytes(
    shape: ModelShape, tokens: int, precision: str, checkpointing: bool, lora: LoraSettings | None = None
) -> float:
    """Of a pack of `tokens` between its forward and its backward, logits apart."""
    layer = tokens * layer_bytes(shape, precision, lora)
    if checkpointing:
        return shape.layers * tokens * FP32 * shape.width + layer
    return shape.layers * layer


def logits_bytes(shape: ModelShape, targets: int, chunk: int | None = None) -> float:
    """Of the loss over the vocabulary; `chunk`: targets whose logits exist at a time, None = all at once."""
    return float(LOGITS_COPIES * FP32 * shape.vocabulary * min(targets, chunk or targets))
