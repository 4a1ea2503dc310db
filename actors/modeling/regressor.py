"""The attribute regressor: a backbone and one regression head per attribute; its loss, its inputs, its folder.

Saved so that `AutoModelForSequenceClassification` loads it. Knows no training loop (`actors.training.trainer`) and no
scoring (`actors.scoring.predictor`). Source: HelpSteer (arXiv 2311.09528) section 4; NeMo-Aligner
`megatron_gpt_regression_reward_model.py`.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from actors.kernels.transfer import to_device
from actors.modeling.backbone import backbone_of, check, first_position, model_class, packs
from actors.modeling.isolation import attention_of
from actors.modeling.model_folder import Format, fit_embeddings, load_config, load_weights, local_folder, text_folder
from actors.modeling.ridge_init import RidgeHeads
from actors.modeling.train_task import TrainTask
from actors.modeling.warmup import AnswerFeatures, WarmupHeads
from data.attributes import AttributeSchema
from data.errors import UserError
from data.examples import Example

LossKind = Literal["squared", "absolute"]


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

    def scores(self, pack: dict[str, Any], reads_S: torch.Tensor) -> torch.Tensor:
        """Raw scores in the attributes' own units, float32, shape [S, A]."""
        return self._scored(self.read(pack, reads_S))

    def _scored(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        hidden_S1D = hidden_SD[:, None]
        # The head runs in fp32 whatever the backbone runs in: scores are compared to the hundredth of a point.
        with torch.autocast(hidden_S1D.device.type, enabled=False):
            return self.backbone.head(self.model, hidden_S1D).float()

    def read(self, pack: dict[str, Any], reads_S: torch.Tensor) -> torch.Tensor:
        """Input of the heads: the backbone's last hidden states at the positions read, shape [S, D]."""
        return self._hidden(pack)[reads_S]

    def _hidden(self, pack: dict[str, Any]) -> torch.Tensor:
        """The backbone's last hidden states, shape [T, D]."""
        body = getattr(self.model, self.model.base_model_prefix)
        if "position_ids" not in pack:  # one conversation
            cached = {"use_cache": False} if self.backbone.causal else {}
            return body(input_ids=pack["input_ids"], **cached).last_hidden_state[0]
        if packs(type(self.model)):
            shifted = pack["position_ids"] + first_position(self.model.config)
            return body(**pack | {"position_ids": shifted}).last_hidden_state[0]
        segments = itertools.pairwise(pack["cu_seq_lens_q"].tolist())
        return torch.cat([body(input_ids=pack["input_ids"][:, a:b]).last_hidden_state[0] for a, b in segments])

    def forward(
        self,
        pack: dict[str, Any],
        reads_S: torch.Tensor,
        values_SA: torch.Tensor,
        weights_SA: torch.Tensor,
        **answers: torch.Tensor,
    ) -> torch.Tensor:
        """`weights_SA` is 0 without a label; `values_SA` must be finite there too. `answers` goes to WarmupHeads."""
        hidden_TD = self._hidden(pack)
        loss = (label_losses(self._scored(hidden_TD[reads_S]) - values_SA, self.loss) * weights_SA).sum()
        if self.warmup_heads is None:
            return loss
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

    def build(self) -> PredictorLoss:
        """Raises UserError as `load_regressor` and `require_language_model` do."""
        folder = local_folder(self.base)
        model = load_regressor(folder, self.format(), self.packing)
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
        starts = np.cumsum([0, *(len(e.ids_T) for e in examples)])
        reads_S = np.concatenate([e.turn_ends_S + start for e, start in zip(examples, starts, strict=False)])
        weights_SA = np.concatenate([self._weights(e) for e in examples])
        values_SA = np.where(weights_SA > 0, np.concatenate([e.values_SA for e in examples]), 0).astype(np.float32)
        multiple = self.multiple(device, pack_tokens) if _packs(self.base) else 1
        return {
            "pack": self.pack(examples, device, multiple),
            "reads_S": to_device(reads_S.astype(np.int64), device),
            "values_SA": to_device(values_SA, device),
            "weights_SA": to_device(weights_SA, device),
        } | (self.answer_features.inputs(examples, device) if self.answer_features else {})

    @property
    def parts(self) -> tuple[str, ...]:
        """The attributes."""
        return tuple(self.schema.names)

    def loss_parts(self, module: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
        assert isinstance(module, PredictorLoss)
        losses_SA = label_losses(module.scores(inputs["pack"], inputs["reads_S"]) - inputs["values_SA"], self.loss)
        losses_A = (losses_SA * inputs["weights_SA"]).sum(0)
        return dict(zip(self.schema.names, losses_A.tolist(), strict=True))

    def target_weight(self, example: Example) -> float:
        return float(self._weights(example).sum(dtype=np.float64))

    def _weights(self, example: Example) -> np.ndarray:
        """Weight of each label, float32 [S, A]; 0 for a missing one and one out of range."""
        weights_A = np.array([self.attribute_weights.get(name, 1.0) for name in self.schema.names], np.float32)
        return in_range(example.values_SA, self.schema) * weights_A


@functools.cache
def _packs(base: str) -> bool:
    """False for a backbone that reads one segment at a time: its packs need no padding."""
    return packs(model_class(load_config(text_folder(base))))


def load_regressor(
    folder: str, format: Format, packing: bool = True, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Backbone in `dtype` and heads in fp32, randomly initialized if the folder has none.

    Raises UserError for an unreadable folder, and for a model type that cannot carry the heads.
    """
    config = load_config(folder)
    cls, backbone = model_class(config), backbone_of(config)
    if packing and not packs(cls) and is_deepspeed_zero3_enabled():
        raise UserError(
            f"a {config.model_type} backbone reads one segment per forward, so under ZeRO stage 3 workers would "
            "wait for each other's layers forever; set predictor.learner.zero_stage to 2 or less, or its packing to "
            "off"
        )
    model = load_weights(
        AutoModelForSequenceClassification,
        folder,
        "backbone",
        dtype=dtype,
        attn_implementation=attention_of(cls, packing),
        id2label=dict(enumerate(format.schema.names)),
        label2id={name: i for i, name in enumerate(format.schema.names)},
        problem_type="regression",
        **backbone.overrides,
    )
    check(model)
    fit_embeddings(model, format)
    for name in backbone.heads:
        model.get_submodule(name).float().register_forward_pre_hook(_in_own_dtype)
    return model


def _in_own_dtype(head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.to(next(head.parameters()).dtype) for a in arguments)
