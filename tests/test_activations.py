"""The formula of kept activations against torch's own count, on transformers' layers in our packed forward."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.kernels.varlen import VARLEN, packed
from actors.modeling.lora import add_adapters
from actors.modeling.model_shape import shape_of
from actors.modeling.settings import LoraSettings
from actors.training.activations import kept_bytes, layer_bytes, logits_bytes

TOKENS = 262
SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 344}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2's": (
        "llama",
        {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536},
    ),
    "the demo's": ("llama", SMALL),
    "whole heads": ("llama", SMALL | {"num_key_value_heads": 4, "intermediate_size": 512}),
    "Qwen 3": ("qwen3", SMALL | {"head_dim": 64}),
    "Mistral": ("mistral", SMALL | {"sliding_window": None}),
    "Gemma 3": ("gemma3_text", SMALL | {"head_dim": 32}),
    "Mixtral": ("mixtral", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def _model(kind: str, entries: dict[str, Any], layers: int, lora: LoraSettings | None = None) -> torch.nn.Module:
    types = {"layer_types": ["full_attention"] * layers} if kind.startswith("gemma") else {}
    config = AutoConfig.for_model(
        kind, vocab_size=500, num_hidden_layers=layers, max_position_embeddings=512, **types, **entries
    )
    config._attn_implementation = VARLEN
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    if lora:
        add_adapters(model, lora, ())
    return model


def _kept(model: Any, precision: str) -> int:
    """Bytes of the storages that the forward of two segments keeps, weights and their bf16 copies apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    cast = {(p.numel(), torch.bfloat16) for p in model.parameters() if p.dim() == 2}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        is_copy = (tensor.numel(), tensor.dtype) in cast
        if tensor.untyped_storage().data_ptr() not in weights and not is_copy:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    segments = [np.arange(TOKENS // 2) % 50] * 2
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model.model(**packed(segments))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=8)], ids=["full", "adapters"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_layer_keeps_what_the_formula_says(name: str, precision: str, lora: LoraSettings | None) -> None:
    kind, entries = SHAPES[name]
    one, three = (_kept(_model(kind, entries, layers, lora), precision) for layers in (1, 3))
    measured = (three - one) / 2 / TOKENS
    shape = shape_of(_model(kind, entries, 2).config)  # type: ignore[arg-type]
    assert layer_bytes(shape, precision, lora) == pytest.approx(measured, rel=0.04 if precision == "fp32" else 0.08)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    shape = shape_of(AutoConfig.for_model("llama", vocab_size=500, num_hidden_layers=8, **SMALL))
    layer = TOKENS * layer_bytes(shape, "fp32")
    assert kept_bytes(shape, TOKENS, "fp32", checkpointing=False) == 8 * layer
    assert kept_bytes(shape, TOKENS, "fp32", checkpointing=True) == 8 * TOKENS * 4 * 128 + layer


def test_logits_are_three_matrices_and_a_chunk_bounds_them() -> None:
    shape = shape_of(AutoConfig.for_model("llama", vocab_size=500, num_hidden_layers=2, **SMALL))
    assert logits_bytes(shape, 1024) == 3 * 4 * 500 * 1024
    assert logits_bytes(shape, 1024, chunk=64) == 3 * 4 * 500 * 64
    assert logits_bytes(shape, 32, chunk=64) == 3 * 4 * 500 * 32
