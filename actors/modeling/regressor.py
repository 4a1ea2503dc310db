"""The attribute regressor: a backbone and one regression head per attribute; its loss, its inputs, its folder.

Saved so that `AutoModelForSequenceClassification` loads it, but for heads on several layers (`layer_model`). Knows no
training loop (`actors.training.trainer`) and no scoring (`actors.scoring.predictor`). Source: HelpSteer (arXiv
2311.09528) section 4; NeMo-Aligner `megatron_gpt_regression_reward_model.py`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from actors.kernels.transfer import to_device
from actors.modeling.backbone import backbone_of, check, first_position, model_class, packs
from actors.modeling.isolation import attention_of
from actors.modeling.layer_heads import ENTRY, LayerHeads, LayerReader
from actors.modeling.layer_model import describe_as_backbone, load_cut, replace_heads
from actors.modeling.model_folder import (
    Format,
    fit_embeddings,
    load_config,
    load_format,
    load_weights,
    local_folder,
    save_model,
    text_folder,
)
from actors.modeling.model_part import ModelPart
from actors.modeling.ridge_init import RidgeHeads
from actors.modeling.settings import HeadsSettings, LossKind
from actors.modeling.train_task import TrainTask
from actors.modeling.warmup import AnswerFeatures, WarmupHeads
from data.attributes import AttributeSchema
from data.errors import UserError
from data.examples import Example
from data.tokens import turn_starts


def label_losses(residuals_SA: torch.Tensor, kind: LossKind) -> torch.Tensor:
    """The loss of each score.

    Squared errors make a score the mean of the raters' values, absolute ones the median. Where most raters are
    right, the median is the truth; every other rater draws the mean towards the middle of the scale.
    """
    return residuals_SA**2 if kind == "squared" else residuals_SA.abs()


def in_range(values_SA: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """Which labels count, bool [S, A]: those that are given and lie on the attribute's scale."""
    low_A, high_A = (np.array([getattr(a, end) for a in schema.attributes], np.float32) for end in ("low", "high"))
    return (values_SA >= low_A) & (values_SA <= high_A)  # NaN compares false


def require_language_model(config: PreTrainedConfig) -> None:
    """Raise UserError unless this backbone can stay a language model: a saved predictor has no output layer."""
    if not (backbone_of(config).causal and config.get_text_config().tie_word_embeddings):
        raise UserError(
            f"predictor.lm_loss_weight needs a decoder with tied embeddings, which this {config.model_type} backbone "
            "is not; set predictor.lm_loss_weight to 0"
        )


class PredictorLoss(torch.nn.Module):
    """`scores` at the positions that are read; `forward` gives the summed, weighted loss over the labels of a pack."""

    def __init__(self, model: PreTrainedModel, loss: LossKind = "squared", token_weight: float = 0.0):
        """`token_weight` > 0 adds the losses of WarmupHeads, weighted so for each token beside a label."""
        super().__init__()
        self.model, self.loss, self.token_weight = model, loss, token_weight
        self.warmup_heads = (
            WarmupHeads(model.config.get_text_config().hidden_size, surprise=True) if token_weight else None
        )
        self.backbone = backbone_of(model.config)
        self.heads = self.backbone.heads
        """Modules trained in full even where the backbone only gets adapters."""
        self.reader = LayerReader(model, model.layer_heads) if hasattr(model, "layer_heads") else None
        """None = the heads read the last hidden state."""

    def set_heads(self, heads: LayerHeads, weights_AF: torch.Tensor) -> None:
        """Other heads, on layers of the model; what is above these layers is cut off."""
        assert self.reader is not None, "only heads on several layers are replaced"
        self.reader.close()
        replace_heads(self.model, heads, weights_AF)
        self.reader = LayerReader(self.model, heads)

    def scores(self, pack: dict[str, Any], reads_S: torch.Tensor, starts_S: torch.Tensor | None = None) -> torch.Tensor:
        """Raw scores in the attributes' own units, float32, shape [S, A]; `starts_S` as for `read`."""
        return self._scored(self.read(pack, reads_S, starts_S))

    def _scored(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        hidden_S1D = hidden_SD[:, None]
        # The head runs in fp32 whatever the backbone runs in: scores are compared to the hundredth of a point.
        with torch.autocast(hidden_S1D.device.type, enabled=False):
            return self.backbone.head(self.model, hidden_S1D).float()

    def read(self, pack: dict[str, Any], reads_S: torch.Tensor, starts_S: torch.Tensor | None = None) -> torch.Tensor:
        """Input of the heads: the backbone's last hidden states at the positions read, shape [S, D].

        Of heads on several layers their features [S, F]; the answers begin at `starts_S`.
        """
        if self.reader is None:
            return self._hidden(pack)[reads_S]
        parts = [self.reader.states(**inputs) for inputs in self._forwards(pack)]
        states = {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}
        return self.reader.features(states, reads_S if starts_S is None else starts_S, reads_S)

    def _hidden(self, pack: dict[str, Any]) -> torch.Tensor:
        """The backbone's last hidden states, shape [T, D]."""
        body = getattr(self.model, self.model.base_model_prefix)
        parts = [body(**inputs).last_hidden_state[0] for inputs in self._forwards(pack)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _forwards(self, pack: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The arguments of the backbone's forwards: one for the whole pack, or one for each segment."""
        if "position_ids" not in pack:  # one conversation
            yield {"input_ids": pack["input_ids"]} | ({"use_cache": False} if self.backbone.causal else {})
        elif packs(type(self.model)):
            yield pack | {"position_ids": pack["position_ids"] + first_position(self.model.config)}
        else:
            for a, b in itertools.pairwise(pack["cu_seq_lens_q"].tolist()):
                yield {"input_ids": pack["input_ids"][:, a:b]}

    def forward(
        self,
        pack: dict[str, Any],
        reads_S: torch.Tensor,
        values_SA: torch.Tensor,
        weights_SA: torch.Tensor,
        starts_S: torch.Tensor | None = None,
        **answers: torch.Tensor,
    ) -> torch.Tensor:
        """`weights_SA` is 0 without a label; `values_SA` must be finite there too. `answers` goes to WarmupHeads."""
        if self.warmup_heads is None:
            scores_SA = self.scores(pack, reads_S, starts_S)
            return (label_losses(scores_SA - values_SA, self.loss) * weights_SA).sum()
        hidden_TD = self._hidden(pack)
        loss = (label_losses(self._scored(hidden_TD[reads_S]) - values_SA, self.loss) * weights_SA).sum()
        vocabulary_VD = self.model.get_input_embeddings().weight
        return loss + self.token_weight * self.warmup_heads(hidden_TD, vocabulary_VD, pack["input_ids"][0], **answers)


@dataclass(frozen=True)
class PredictorTask(TrainTask):
    """Trains a predictor on the backbone `base`."""

    attribute_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of an attribute's labels in the mean; 1 for an attribute that is not named."""
    loss: LossKind = "squared"
    ridge_init: float = 0.0
    """Ridge penalty per example of the ridge-initialized heads; 0 = heads start at random."""
    token_weight: float = 0.0
    """Weight of an answer's token beside a label in the losses of WarmupHeads; 0 = no such losses."""
    answer_features: AnswerFeatures | None = None
    """Needed with a token weight."""
    layer_heads: HeadsSettings | None = None
    """Heads on several layers, to be fitted (`actors.training.frozen_fit`); None = those of `base`, if it has any."""

    def build(self) -> PredictorLoss:
        """Raises UserError as `load_regressor` and `require_language_model` do."""
        folder = local_folder(self.base)
        model = load_regressor(folder, self.format(), self.packing, heads=self.layer_heads)
        if self.token_weight:
            require_language_model(model.config)
        return PredictorLoss(model, self.loss, self.token_weight)

    def start(self, module: torch.nn.Module, packs: Iterable[dict[str, Any]]) -> str:
        """Fit a decoder's heads to the frozen features of `packs`."""
        assert isinstance(module, PredictorLoss)
        if not self.ridge_init:
            return ""
        if not module.backbone.causal:
            kind = module.model.config.model_type
            return f"heads start at random: a {kind} head is no linear map that could be fitted in closed form"
        head: Any = module.model.score
        ridge = RidgeHeads(head.in_features, head.out_features)
        for inputs in packs:
            ridge.add(module.read(inputs["pack"], inputs["reads_S"]), inputs["values_SA"], inputs["weights_SA"])
        head.weight.copy_(ridge.weights(self.ridge_init))
        return f"heads fitted in closed form to the frozen backbone, ridge penalty {self.ridge_init:g} per example"

    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        """Forward arguments for one pack; the positions read are shifted by the segments before them."""
        bounds = np.cumsum([0, *(len(e.ids_T) for e in examples)])
        reads_S = np.concatenate([e.turn_ends_S + begin for e, begin in zip(examples, bounds, strict=False)])
        starts = (turn_starts(e.trained_T, e.turn_ends_S) for e in examples)
        starts_S = np.concatenate([s + begin for s, begin in zip(starts, bounds, strict=False)])
        weights_SA = np.concatenate([self.label_weights(e) for e in examples])
        values_SA = np.where(weights_SA > 0, np.concatenate([e.values_SA for e in examples]), 0).astype(np.float32)
        multiple = self.multiple(device, pack_tokens) if _packs(self.base) else 1
        return {
            "pack": self.pack(examples, device, multiple),
            "reads_S": to_device(reads_S.astype(np.int64), device),
            "starts_S": to_device(starts_S.astype(np.int64), device),
            "values_SA": to_device(values_SA, device),
            "weights_SA": to_device(weights_SA, device),
        } | (self.answer_features.inputs(examples, device) if self.answer_features else {})

    @property
    def parts(self) -> tuple[str, ...]:
        """The attributes."""
        return tuple(self.schema.names)

    def loss_parts(self, module: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
        assert isinstance(module, PredictorLoss)
        scores_SA = module.scores(inputs["pack"], inputs["reads_S"], inputs["starts_S"])
        losses_SA = label_losses(scores_SA - inputs["values_SA"], self.loss)
        losses_A = (losses_SA * inputs["weights_SA"]).sum(0)
        return dict(zip(self.schema.names, losses_A.tolist(), strict=True))

    def target_weight(self, example: Example) -> float:
        return float(self.label_weights(example).sum(dtype=np.float64))

    def format(self) -> Format:
        """Of a base with heads on several layers, which are trained on, its own; else as for every task."""
        folder = text_folder(self.base)
        return load_format(folder) if LayerHeads.of_config(load_config(folder)) else super().format()

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None:
        assert isinstance(module, PredictorLoss)
        heads = module.reader.heads if module.reader else None
        entries = {ENTRY: heads.entry} if heads else {}
        save_model(module.model, state, self.format(), folder, self.LABELS, entries)
        if heads:
            describe_as_backbone(module.model, folder)

    def label_weights(self, example: Example) -> np.ndarray:
        """Weight of each label, float32 [S, A]; 0 for a missing one and one out of range."""
        weights_A = np.array([self.attribute_weights.get(name, 1.0) for name in self.schema.names], np.float32)
        return in_range(example.values_SA, self.schema) * weights_A


@functools.cache
def _packs(base: str) -> bool:
    """False for a backbone that reads one segment at a time: its packs need no padding."""
    return packs(model_class(load_config(text_folder(base))))


def load_regressor(
    folder: str,
    format: Format,
    packing: bool = True,
    dtype: torch.dtype = torch.float32,
    heads: HeadsSettings | None = None,
    part: ModelPart | None = None,
) -> PreTrainedModel:
    """Backbone in `dtype` and heads in fp32, randomly initialized if the folder has none; with `part` only that part.

    With `heads`, or those on several layers of the folder, the model is cut and has `layer_heads`. Raises UserError for
    an unreadable folder, and for a model type that cannot carry the heads.
    """
    config = load_config(folder)
    cls, backbone = model_class(config), backbone_of(config)
    if packing and not packs(cls) and is_deepspeed_zero3_enabled():
        raise UserError(
            f"a {config.model_type} backbone reads one segment per forward, so under ZeRO stage 3 workers would "
            "wait for each other's layers forever; set predictor.learner.zero_stage to 2 or less, or its packing to "
            "off"
        )
    if layered := LayerHeads.wanted(heads, config, folder):
        model = load_cut(folder, config, layered, format, dtype, attention_of(cls, packing), part)
        model.score.register_forward_pre_hook(_in_own_dtype)
        return model
    entries: dict[str, Any] = {
        "id2label": dict(enumerate(format.schema.names)),
        "label2id": {name: i for i, name in enumerate(format.schema.names)},
        "problem_type": "regression",
        **backbone.overrides,
    }
    model = _loaded(folder, config, entries, part, dtype=dtype, attn_implementation=attention_of(cls, packing))
    check(model)
    fit_embeddings(model, format)
    for name in backbone.heads:
        model.get_submodule(name).float().register_forward_pre_hook(_in_own_dtype)
    return model


def _loaded(
    folder: str, config: PreTrainedConfig, entries: dict[str, Any], part: ModelPart | None, **options: Any
) -> PreTrainedModel:
    """The model in `folder` with other `entries` in its config, or that part of it."""
    if part is None:
        return load_weights(AutoModelForSequenceClassification, folder, "backbone", **options, **entries)
    config.update(entries)
    model = load_weights(model_class(config), folder, "backbone", **options, **part.options(folder, config))
    part.add_outputs(model)
    return model


def _in_own_dtype(head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.to(next(head.parameters()).dtype) for a in arguments)
