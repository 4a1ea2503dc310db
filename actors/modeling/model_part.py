"""One part of a predictor that is split over several devices: which slices of the weights, and which outputs are added.

A part is a smaller model of the same kind: fewer heads and a narrower feed-forward of the same width, so every kernel
works on it as on a whole one. Embeddings, norms and heads are whole in each part. Source of the split: Megatron-LM
(arXiv 1909.08053), by the plan that transformers has for each model. Knows no processes.
"""

import copy
import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from actors.modeling.backbone import backbone_of, model_class
from data.errors import UserError

COLUMNS, ROWS = "colwise", "rowwise"
"""Styles in transformers' plans: outputs are split; inputs are split, so that the outputs of all parts are added."""
WHOLE_STYLES = ("replicated_with_grad_allreduce", "embedding_rowwise")
"""Of weights that each part has whole."""
SETTING = "annotate.tensor_parallel"
SPLIT_SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Entries of a config that a part has fewer of."""


@dataclass(frozen=True)
class ModelPart:
    """Part number `rank` of `num_parts`."""

    rank: int
    num_parts: int

    def options(self, folder: str, config: PreTrainedConfig) -> dict[str, Any]:
        """Arguments of `from_pretrained` for this part of the predictor in `folder`; the other slices are never read.

        Raises UserError for a model that cannot be split so, and for a folder without all of its weights.
        """
        whole, small, own = self._split(config)
        return {"config": small, "state_dict": self._slices(folder, whole, _shapes(whole), own)}

    def require_possible(self, config: PreTrainedConfig) -> None:
        """Raises UserError for a predictor that cannot be split so, from its config alone."""
        self._split(config)

    def _split(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, PreTrainedConfig, dict[str, torch.Size]]:
        """The whole model without storage, the config of this part, and the shapes of its parameters."""
        whole = on_meta(config)
        self._require_plan(whole)
        small = self._config(config)
        own = _shapes(on_meta(small))
        self._require_shapes(whole, own)
        return whole, small, own

    def _config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Of the smaller model. Raises UserError if the parts do not divide its heads or feed-forward."""
        small = copy.deepcopy(config)
        text: Any = small.get_text_config()
        sizes = {name: getattr(text, name, None) for name in SPLIT_SIZES}
        if any(size is not None and size % self.num_parts for size in sizes.values()):
            raise UserError(
                f"{SETTING} is {self.num_parts}, which does not divide the model's {sizes['num_attention_heads']} "
                f"attention heads, {sizes['num_key_value_heads']} of keys and values, and the "
                f"{sizes['intermediate_size']} features of its feed-forward; set it to a number that does"
            )
        if getattr(text, "head_dim", None) is None and sizes["num_attention_heads"]:
            text.head_dim = text.hidden_size // sizes["num_attention_heads"]
        for name, size in sizes.items():
            if size is not None:
                setattr(text, name, size // self.num_parts)
        return small

    def add_outputs(self, model: PreTrainedModel) -> None:
        """Let the layers whose inputs are split add up their outputs over the parts, in the process group."""
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and _style(model, name) == ROWS:
                module.register_forward_hook(_added)

    def _require_plan(self, whole: PreTrainedModel) -> None:
        kind = whole.config.model_type
        styles = set(whole.tp_plan.values()) - set(WHOLE_STYLES)
        if not styles:
            raise UserError(
                f"{SETTING} is {self.num_parts}, and transformers has no plan that splits a model of type {kind}: set "
                "it to 1, or name a predictor on another backbone (Llama, Qwen, Mistral and Gemma have one)"
            )
        if unknown := styles - {COLUMNS, ROWS}:
            raise UserError(
                f"{SETTING} is {self.num_parts}, and the plan that splits a model of type {kind} has layers of the "
                f"kind {', '.join(sorted(unknown))}, which is not computed here: set it to 1"
            )

    def _require_shapes(self, whole: PreTrainedModel, own: Mapping[str, torch.Size]) -> None:
        shapes = _shapes(whole)
        if wrong := [name for name in shapes if self._expected(whole, name, shapes[name]) != own.get(name)]:
            raise UserError(
                f"{SETTING} is {self.num_parts}, and {wrong[0]} of this {whole.config.model_type} model cannot be "
                "split as its plan says: set it to 1"
            )

    def _expected(self, whole: PreTrainedModel, name: str, shape: torch.Size) -> torch.Size:
        sizes = list(shape)
        if (dim := _split_dim(whole, name)) is not None:
            sizes[dim] //= self.num_parts
        return torch.Size(sizes)

    def _slices(
        self, folder: str, whole: PreTrainedModel, shapes: Mapping[str, Any], own: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
            with safe_open(path, "pt") as file:
                for name in set(file.keys()) & set(shapes):
                    found[name] = self._slice(file, whole, name, own[name])
        heads = tuple(f"{head}." for head in backbone_of(whole.config).heads)
        if missing := sorted(name for name in set(shapes) - set(found) if not name.startswith(heads)):
            raise UserError(f"{folder} has no weights of {missing[0]}; name a predictor's folder that is whole")
        return found

    def _slice(self, file: Any, whole: PreTrainedModel, name: str, own: torch.Size) -> torch.Tensor:
        dim = _split_dim(whole, name)
        if dim is not None:
            begin = self.rank * own[dim]
            bounds = slice(begin, begin + own[dim])
            part: torch.Tensor = file.get_slice(name)[bounds] if dim == 0 else file.get_slice(name)[:, bounds]
            return part
        tensor: torch.Tensor = file.get_tensor(name)
        module, _, kind = name.rpartition(".")
        is_added = kind == "bias" and _style(whole, module) == ROWS
        return torch.zeros_like(tensor) if is_added and self.rank else tensor


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The predictor of `config` without storage."""
    with torch.device("meta"), no_init_weights():
        return model_class(config)._from_config(copy.deepcopy(config))


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _style(model: PreTrainedModel, module: str) -> str | None:
    found: str | None = model.tp_plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", module))
    return found


def _split_dim(model: PreTrainedModel, name: str) -> int | None:
    """The dimension in which a parameter is split; None = each part has it whole."""
    module, _, kind = name.rpartition(".")
    style = _style(model, module)
    if style == COLUMNS:
        return 0
    return 1 if style == ROWS and kind == "weight" else None


def _added(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(out)
    return out
