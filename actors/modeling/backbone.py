"""Backbones of the attribute predictor: supported model classes, how each reads a conversation, where its heads are.

A decoder is read at every turn's end. An encoder is read at its first token, through the head of its own
`...ForSequenceClassification` class, so that plain transformers gives the same score. Knows no loss and no rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from data.errors import UserError
from data.tokens import BackboneReading

Head = Callable[[Any, torch.Tensor], torch.Tensor]
"""(model, hidden states [S, 1, D] of the tokens that are read) -> scores [S, A]."""


@dataclass(frozen=True)
class Backbone:
    """How a family of models becomes a predictor."""

    head: Head
    heads: tuple[str, ...]
    """Modules of the head, as the model names them: kept in fp32, and trained in full beside adapters."""
    causal: bool = False
    padded_positions: bool = False
    """Positions are counted from `pad_token_id` + 1 (RoBERTa's inheritance from fairseq)."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Entries of the model's config that make it read its first token."""


_DECODER = Backbone(lambda model, hidden_S1D: model.score(hidden_S1D[:, 0]), ("score",), causal=True)
_CLASSIFIER: Head = lambda model, hidden_S1D: model.classifier(hidden_S1D)  # noqa: E731

ENCODERS: dict[str, Backbone] = {
    "bert": Backbone(
        lambda model, hidden_S1D: model.classifier(model.dropout(model.bert.pooler(hidden_S1D))),
        ("bert.pooler", "classifier"),
    ),
    "roberta": Backbone(_CLASSIFIER, ("classifier",), padded_positions=True),
    "xlm-roberta": Backbone(_CLASSIFIER, ("classifier",), padded_positions=True),
    "camembert": Backbone(_CLASSIFIER, ("classifier",), padded_positions=True),
    "electra": Backbone(_CLASSIFIER, ("classifier",)),
    "distilbert": Backbone(
        lambda model, hidden_S1D: model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden_S1D[:, 0])))),
        ("pre_classifier", "classifier"),
    ),
    # Its default is the mean over all tokens, which does not work on a pack.
    "modernbert": Backbone(
        lambda model, hidden_S1D: model.classifier(model.drop(model.head(hidden_S1D[:, 0]))),
        ("head", "classifier"),
        overrides={"classifier_pooling": "cls"},
    ),
    "deberta-v2": Backbone(
        lambda model, hidden_S1D: model.classifier(model.dropout(model.pooler(hidden_S1D))), ("pooler", "classifier")
    ),
}
"""By `model_type` of the config."""


def backbone_of(config: PreTrainedConfig) -> Backbone:
    """The family `config` belongs to; a model type that is not in ENCODERS is a decoder."""
    return ENCODERS.get(config.model_type, _DECODER)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Its `...ForSequenceClassification` class; raises UserError if there is none."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise _no_predictor(config.model_type)
    found: type[PreTrainedModel] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return found


def check(model: PreTrainedModel) -> None:
    """Raise UserError, with the supported types, unless the model has the head that its family's entry names."""
    if any(not hasattr(model, name.split(".")[0]) for name in backbone_of(model.config).heads):
        raise _no_predictor(model.config.model_type)


def packs(cls: type[PreTrainedModel]) -> bool:
    """Can segments share a pack? Only if attention uses transformers' interface; otherwise each has its forward."""
    return bool(cls._supports_attention_backend)


def first_position(config: PreTrainedConfig) -> int:
    """The position id of a segment's first token."""
    return int(config.pad_token_id) + 1 if backbone_of(config).padded_positions else 0


def max_positions(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest segment; None if the architecture has no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if not positions else int(positions) - first_position(config)


def reading_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> BackboneReading:
    """How the model of `config` reads a conversation; raises UserError for an encoder whose tokenizer has no [CLS]."""
    if backbone_of(config).causal:
        return BackboneReading()
    if tokenizer.cls_token_id is None:
        raise UserError(
            f"the tokenizer of this {config.model_type} backbone names no cls_token, where an encoder is read; "
            "set predictor.backbone to another"
        )
    after = () if tokenizer.sep_token_id is None else (int(tokenizer.sep_token_id),)
    return BackboneReading(causal=False, before=(int(tokenizer.cls_token_id),), after=after)


def _no_predictor(model_type: str) -> UserError:
    return UserError(
        f"a model of type {model_type!r} cannot carry the attribute heads: a decoder with a `score` head can "
        f"(Llama, Qwen, Mistral, Gemma, GPT-2, ...), and these encoders: {', '.join(ENCODERS)}; "
        "set predictor.backbone (or base.model) to one of them"
    )
