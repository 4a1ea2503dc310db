"""Heads on several layers: which hidden states of a decoder are read, how, and which of its layers are needed at all.

A layer in the middle of a pretrained model often rates better than the last one, whose states serve the next token
(probing layer by layer: arXiv 1905.05950, 2005.00719). Knows no loss, no labels and no rows.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from actors.modeling.backbone import backbone_of
from actors.modeling.settings import HeadsSettings, Reading
from data.errors import UserError

READINGS: tuple[Reading, ...] = ("end", "mean")
CANDIDATES = 6
"""`layers: auto` tries so many layers, at equal distances, the last among them."""
ENTRY = "heads"
"""Of `steerlm` in config.json: what `LayerHeads.entry` gives."""


@dataclass(frozen=True, order=True)
class Block:
    """One reading of one layer: as many features as the backbone is wide."""

    layer: int
    """Counted from 1. As in transformers' `hidden_states`, the last layer of the whole model is read after the norm."""
    reading: Reading

    def __str__(self) -> str:
        return f"{self.layer}/{self.reading}"


@dataclass(frozen=True)
class LayerHeads:
    """The features of the heads: the blocks side by side, then a constant 1, whose weight is the bias."""

    blocks: tuple[Block, ...]
    backbone_layers: int
    """Of the model before it was cut: only its last layer is read after the final norm."""

    @classmethod
    def of(cls, settings: HeadsSettings, config: PreTrainedConfig) -> "LayerHeads":
        """All blocks that `settings` name or try. Raises UserError for a layer or backbone that cannot be read."""
        require_decoder(config)
        depth = int(config.get_text_config().num_hidden_layers)
        if settings.layers == "auto":
            layers: Sequence[int] = sorted({math.ceil(depth * i / CANDIDATES) for i in range(1, CANDIDATES + 1)})
        else:
            layers = sorted(settings.layers)
        if layers[-1] > depth:
            raise UserError(
                f"predictor.heads.layers has {layers[-1]}, and this {config.model_type} backbone has {depth} layers; "
                f"name layers from 1 to {depth}, or set it to auto"
            )
        readings = [r for r in READINGS if settings.readings == "auto" or r in settings.readings]
        return cls(tuple(Block(layer, reading) for layer in layers for reading in readings), depth)

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> "LayerHeads | None":
        """Of a saved predictor; None if its only head reads the last layer."""
        entry = (getattr(config, "steerlm", None) or {}).get(ENTRY)
        if entry is None:
            return None
        return cls(tuple(Block(layer, reading) for layer, reading in entry["blocks"]), entry["backbone_layers"])

    @classmethod
    def wanted(cls, settings: HeadsSettings | None, config: PreTrainedConfig, folder: str) -> "LayerHeads | None":
        """Those of `settings`, or else of the model in `folder`, if it has any. Raises UserError if both are there."""
        stored = cls.of_config(config)
        if settings is None:
            return stored
        if stored:
            raise UserError(
                f"{folder} is a predictor that was cut after layer {stored.depth} of {stored.backbone_layers}, and "
                "predictor.heads reads layers of a whole backbone; set predictor.backbone to the model that it came "
                "from"
            )
        return cls.of(settings, config)

    @property
    def entry(self) -> dict[str, Any]:
        """For config.json."""
        return {"blocks": [[b.layer, b.reading] for b in self.blocks], "backbone_layers": self.backbone_layers}

    @property
    def depth(self) -> int:
        """Layers of the backbone that are needed."""
        return max(block.layer for block in self.blocks)

    @property
    def layers(self) -> list[int]:
        return sorted({block.layer for block in self.blocks})

    @property
    def reads_answers(self) -> bool:
        """Is the last layer needed at all tokens of an answer, and not at its end only?"""
        return Block(self.depth, "mean") in self.blocks

    def num_features(self, width: int) -> int:
        return len(self.blocks) * width + 1


def require_decoder(config: PreTrainedConfig) -> None:
    """Raise UserError for an encoder: it is read at its first token, through layers of its own."""
    if not backbone_of(config).causal:
        raise UserError(
            f"predictor.heads reads layers of a decoder, and this {config.model_type} backbone is an encoder; "
            "set predictor.heads to null, or predictor.backbone to a decoder"
        )


def cut_config(config: PreTrainedConfig, depth: int) -> None:
    """Let `config` be that of its first `depth` layers, in place; what it lists for each layer is cut, too."""
    text = config.get_text_config()
    whole = int(text.num_hidden_layers)
    for name, value in vars(text).copy().items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == whole:
            setattr(text, name, type(value)(value[:depth]))
    text.num_hidden_layers = depth


def cut_after(config: PreTrainedConfig, settings: HeadsSettings) -> PreTrainedConfig:
    """A copy of `config` with the layers that heads of these settings may read; raises UserError as `LayerHeads.of`."""
    cut = copy.deepcopy(config)
    cut_config(cut, LayerHeads.of(settings, cut).depth)
    return cut


def decoder_layers(body: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of a decoder without heads; raises UserError for one that has no list of them."""
    count = int(getattr(body, "config").get_text_config().num_hidden_layers)  # noqa: B009
    found = next((m for m in body.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), None)
    if found is None:
        raise UserError(
            f"predictor.heads reads single layers, and {type(body).__name__} has no list of its {count} layers; "
            "set predictor.heads to null"
        )
    return found


class LayerReader:
    """Reads the features of `heads` in forwards of a model."""

    def __init__(self, model: PreTrainedModel, heads: LayerHeads):
        self.heads = heads
        self._body = getattr(model, model.base_model_prefix)
        self._states: dict[int, torch.Tensor] = {}
        layers = decoder_layers(self._body)
        inner = [layer for layer in heads.layers if layer < heads.backbone_layers]
        self._hooks = [layers[layer - 1].register_forward_hook(self._keeper(layer)) for layer in inner]

    def close(self) -> None:
        """Stop listening to the model's forwards."""
        for hook in self._hooks:
            hook.remove()

    def _keeper(self, layer: int) -> Callable[..., None]:
        def keep(module: torch.nn.Module, arguments: Any, out: Any) -> None:
            self._states[layer] = (out[0] if isinstance(out, tuple) else out)[0]

        return keep

    def states(self, **inputs: Any) -> dict[int, torch.Tensor]:
        """One forward: layer -> hidden states [T, D]."""
        self._states.clear()
        last_TD = self._body(**inputs).last_hidden_state[0]
        found = dict(self._states)
        self._states.clear()
        if self.heads.backbone_layers in self.heads.layers:
            found[self.heads.backbone_layers] = last_TD
        return found

    def features(self, states: dict[int, torch.Tensor], starts_S: torch.Tensor, ends_S: torch.Tensor) -> torch.Tensor:
        """Float32 [S, blocks x D + 1], of answers whose first and last tokens are at `starts_S` and `ends_S`.

        Micro-example, blocks 1/end and 1/mean, answers 2 to 3: [h(3), (h(2) + h(3)) / 2, 1].
        """
        with torch.autocast(ends_S.device.type, enabled=False):
            float_states = {layer: state.float() for layer, state in states.items()}
            means_ST = _averages(starts_S, ends_S, len(next(iter(states.values()))))
            columns = [
                float_states[b.layer][ends_S] if b.reading == "end" else means_ST @ float_states[b.layer]
                for b in self.heads.blocks
            ]
            return torch.cat([*columns, torch.ones(len(ends_S), 1, device=ends_S.device)], dim=1)


def _averages(starts_S: torch.Tensor, ends_S: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """A product with it is the mean over each answer, [S, T]: no sum runs over tokens of others."""
    position_T = torch.arange(num_tokens, device=ends_S.device)
    inside_ST = (position_T >= starts_S[:, None]) & (position_T <= ends_S[:, None])
    return inside_ST.float() / (ends_S - starts_S + 1)[:, None]
