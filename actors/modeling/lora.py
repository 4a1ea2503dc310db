"""Low-rank adapters: put them into a model before training, fold them into its weights before export.

Source: LoRA, arXiv 2106.09685; the adapters themselves are peft's. Knows no training loop and no DeepSpeed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data.errors import UserError
from data.record import Record

ADAPTER = "default"
"""peft's name for the only adapter of a model."""


class LoraSettings(Record):
    """Low-rank adapters instead of full training.

    Heads are trained in full; everything else keeps the base model's weights. That includes the embeddings, so the rows that control tokens
    unknown to the base model added to them stay as they were drawn: train in full where the new tokens' own meaning matters.
    """

    rank: int = Field(16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(32, gt=0)
    """An adapter's product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on an adapter's input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names (or their ends) of the linear modules that get an adapter, e.g. [q_proj, v_proj]; all-linear = every one outside heads and vocabulary."""


def add_adapters(model: PreTrainedModel, settings: LoraSettings, heads: Sequence[str]) -> None:
    """Freeze `model` but for new adapters and the modules named in `heads`; raises UserError if no module has a name in `target_modules`."""
    import peft

    targets = _targets(model, settings, heads)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        # GPT-2's Conv1D stores its weight the other way round.
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )
    peft.inject_adapter_in_model(config, model, ADAPTER)
    for head in heads:
        model.get_submodule(head).requires_grad_(True)


def merged(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` of a module with adapters as the plain model's: W + alpha / rank * B A under the plain names, one weight at a time.

    Works on gathered tensors, so it does not matter how the module itself is sharded.
    """
    plain = {}
    for name, value in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain[name.replace(".base_layer.", ".")] = value
        if not name.endswith(".base_layer.weight"):
            continue
        owner = name.removesuffix(".base_layer.weight")
        layer = module.get_submodule(owner)
        delta = (
            state[f"{owner}.lora_B.{ADAPTER}.weight"].float()
            @ state[f"{owner}.lora_A.{ADAPTER}.weight"].float()
            * layer.scaling[ADAPTER]
        )
        plain[f"{owner}.weight"] = (value.float() + (delta.T if layer.fan_in_fan_out else delta)).to(value.dtype)
    return plain


def _targets(model: PreTrainedModel, settings: LoraSettings, heads: Sequence[str]) -> list[str]:
    vocabulary = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not vocabulary
    ]
    linear = [name for name in linear if not any(name == head or name.startswith(f"{head}.") for head in heads)]
    if settings.target_modules == "all-linear":
        return linear
    wanted = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in settings.target_modules)]
    if not wanted:
        kinds = sorted({re.sub(r".*\.", "", name) for name in linear})
        raise UserError(
            f"no linear module of {type(model).__name__} is named {' or '.join(settings.target_modules)}; it has {', '.join(kinds)}; "
            "set learner.lora.target_modules to some of those, or to all-linear"
        )
    return wanted
