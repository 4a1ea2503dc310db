"""Low-rank adapters: put them into a model before training, fold them into its weights before export.

Source: LoRA, arXiv 2106.09685; the adapters themselves are peft's. Knows no training loop and no DeepSpeed.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from actors.modeling.settings import LoraSettings
from data.errors import UserError

ADAPTER = "default"
"""peft's name for the only adapter of a model."""


def add_adapters(model: PreTrainedModel, settings: LoraSettings, heads: Sequence[str]) -> None:
    """Freeze `model` except new adapters and `heads`; raises UserError if `target_modules` names no module."""
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
    """`state` of a module with adapters as the plain model's: W + alpha / rank * B A under the plain names.

    Works on gathered tensors, one weight at a time, so it does not matter how the module itself is sharded.
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
        a, b = (state[f"{owner}.lora_{side}.{ADAPTER}.weight"].float() for side in "AB")
        delta = b @ a * layer.scaling[ADAPTER]
        plain[f"{owner}.weight"] = (value.float() + (delta.T if layer.fan_in_fan_out else delta)).to(value.dtype)
    return plain


def linear_modules(model: PreTrainedModel, heads: Sequence[str]) -> dict[str, torch.nn.Linear | Conv1D]:
    """The linear modules outside `heads` and vocabulary, by name: those that adapters may go to."""
    vocabulary = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not vocabulary
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    }


def _targets(model: PreTrainedModel, settings: LoraSettings, heads: Sequence[str]) -> list[str]:
    linear = linear_modules(model, heads)
    wanted = [name for name in linear if settings.adapts(name)]
    if not wanted and settings.target_modules != "all-linear":
        kinds = sorted({re.sub(r".*\.", "", name) for name in linear})
        raise UserError(
            f"no linear module of {type(model).__name__} is named {' or '.join(settings.target_modules)}; "
            f"it has {', '.join(kinds)}; set learner.lora.target_modules to some of those, or to all-linear"
        )
    return wanted
