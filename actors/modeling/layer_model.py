"""A decoder that is cut after the highest layer its heads read, with its heads: loaded, changed in place, described.

Its folder has the weights of a `...ForSequenceClassification` whose `score` reads the features of `LayerHeads`. Plain
transformers has no class for such heads: its own refuses the shape of `score.weight`, and `architectures` in
config.json names the model without heads. Knows no loss and no training.
"""

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from actors.modeling.backbone import check, model_class
from actors.modeling.layer_heads import LayerHeads, cut_config, decoder_layers
from actors.modeling.model_folder import Format, fit_embeddings, load_weights
from actors.modeling.model_part import ModelPart
from data.errors import UserError

SCORE = "score.weight"
LABEL_ENTRIES = ("id2label", "label2id", "problem_type")
"""Of config.json: they would say that plain transformers can rate with the folder."""


def load_cut(
    folder: str,
    config: PreTrainedConfig,
    heads: LayerHeads,
    format: Format,
    dtype: torch.dtype,
    attention: str,
    part: ModelPart | None = None,
) -> PreTrainedModel:
    """The model in `folder` up to the highest layer of `heads`, its own heads in float32, else random ones.

    With `part` only that part of it. `config` is changed. The model has `heads` as `layer_heads`. Raises UserError if
    weights are missing.
    """
    cut_config(config, heads.depth)
    config.id2label = dict(enumerate(format.schema.names))
    model = _loaded(folder, config, part, dtype=dtype, attn_implementation=attention)
    check(model)
    fit_embeddings(model, format)
    width = int(config.get_text_config().hidden_size)
    _set_heads(model, heads, torch.nn.Linear(heads.num_features(width), len(format.schema.names), bias=False))
    stored = _stored_heads(folder) if LayerHeads.of_config(config) else None
    if stored is not None:
        if stored.shape != model.score.weight.shape:
            raise UserError(
                f"{folder} has heads of shape {tuple(stored.shape)}, and its config.json describes "
                f"{tuple(model.score.weight.shape)}; name a model folder that is whole"
            )
        model.score.weight.data.copy_(stored)
    return model


def _loaded(folder: str, config: PreTrainedConfig, part: ModelPart | None, **options: Any) -> PreTrainedModel:
    """The layers that `config` has, without the heads in `folder`."""
    auto: Any = model_class(config) if part else AutoModelForSequenceClassification
    options |= part.options(folder, config) if part else {"config": config}
    with _quiet():  # transformers prints a table of the layers that are left out
        loaded: Any = load_weights(
            auto, folder, "backbone", **options, ignore_mismatched_sizes=True, output_loading_info=True
        )
    model: PreTrainedModel = loaded[0]
    info = loaded[1]
    wrong = sorted({key[0] for key in info["mismatched_keys"]} | set(info["missing_keys"]) - {SCORE})
    if wrong := [key for key in wrong if key != SCORE]:
        raise UserError(
            f"{folder} lacks weights of its config.json, or has them in another shape: {', '.join(wrong[:3])}"
        )
    if part:
        part.add_outputs(model)
    return model


def replace_heads(model: PreTrainedModel, heads: LayerHeads, weights_AF: torch.Tensor) -> None:
    """Give `model` other heads, on layers that it has, and cut what is above them, in place."""
    layers = decoder_layers(getattr(model, model.base_model_prefix))
    score = torch.nn.Linear(weights_AF.shape[1], weights_AF.shape[0], bias=False).to(model.device)
    score.weight.data.copy_(weights_AF)
    del layers[heads.depth :]
    cut_config(model.config, heads.depth)
    _set_heads(model, heads, score)


def _set_heads(model: Any, heads: LayerHeads, score: torch.nn.Linear) -> None:
    model.score, model.layer_heads = score.float(), heads


def describe_as_backbone(model: PreTrainedModel, folder: str) -> None:
    """Let config.json in `folder` say what plain transformers can load of it: the model without heads."""
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    config["architectures"] = [type(getattr(model, model.base_model_prefix)).__name__]
    with open(path, "w") as file:
        json.dump({k: v for k, v in config.items() if k not in LABEL_ENTRIES}, file, indent=2)


def _stored_heads(folder: str) -> torch.Tensor:
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with safe_open(path, "pt") as file:
            if SCORE in file.keys():  # noqa: SIM118  (it is no dict)
                found: torch.Tensor = file.get_tensor(SCORE)
                return found
    raise UserError(f"{folder} has no heads ({SCORE}) in its safetensors; name a predictor's folder that is whole")


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
