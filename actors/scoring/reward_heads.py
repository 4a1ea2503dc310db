"""Where a model of others has its outputs: a classifier's head, ArmoRM's objectives, or the logit of a token.

Read from the model's config.json; code that comes with a model never runs. Knows no row.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from actors.modeling.model_folder import load_weights
from actors.modeling.model_shape import ModelShape, counted
from actors.scoring.gated_reward import ARCHITECTURE, PROMPT_END, GatedReward, output_names
from data.errors import UserError
from data.printable import printable
from data.rater_settings import HfRaterSettings

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
"""Ends of their names in `architectures`."""


class RewardHead(Protocol):
    """A loaded model and how its outputs are read."""

    model: PreTrainedModel
    columns: Mapping[str, int]
    """Output's name -> its number."""
    can_pad: bool
    """Does it find each text's last token in a padded batch?"""

    def outputs(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, outputs]; padding is on the right."""
        ...


def reward_head(
    settings: HfRaterSettings, folder: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: str
) -> RewardHead:
    """Raises UserError for a folder without weights of the head, or with a head of another kind."""
    return _layout(settings, config)(folder, config, tokenizer, dtype)


def rater_shape(settings: HfRaterSettings, config: PreTrainedConfig) -> ModelShape:
    """Of the whole model, from its config alone; of one with other names in its config only the size is known.

    Raises UserError for a config that cannot be built.
    """
    layout = _layout(settings, config)
    try:
        with torch.device("meta"), no_init_weights():
            model = layout.unfilled(config)
            model.tie_weights()  # left out where no weights are initialized
    except Exception as error:  # a config is data from outside: whatever a model's constructor makes of it
        reason = printable(" ".join(str(error).split()), 150)
        raise UserError(f"no rater can be built from the config.json of {settings.name}: {reason}") from None
    try:
        return counted(model, config.get_text_config())
    except AttributeError:
        return ModelShape(sum(parameter.numel() for parameter in model.parameters()))


def _layout(
    settings: HfRaterSettings, config: PreTrainedConfig
) -> "type[_Classifier] | type[_Objectives] | type[_TokenLogits]":
    architectures = getattr(config, "architectures", None) or ()
    if ARCHITECTURE in architectures and settings.head is None:
        return _Objectives
    if getattr(config, "auto_map", None) and not any(hasattr(transformers, name) for name in architectures):
        raise UserError(
            f"{settings.name} needs code of its own ({', '.join(architectures) or 'auto_map'} in its config.json), "
            "which is never run; name a model that transformers knows in annotate.raters"
        )
    if settings.head == "token_logit":
        if not any(name.endswith(LANGUAGE_MODELS) for name in architectures):
            raise UserError(
                f"{settings.name} is no causal language model ({', '.join(architectures) or 'no architectures'} in its "
                "config.json), so no token has a logit; leave `head` out in annotate.raters"
            )
        return _TokenLogits
    return _Classifier


class _Classifier:
    """What AutoModelForSequenceClassification loads: Skywork-Reward, toxicity classifiers, our own predictors."""

    @staticmethod
    def unfilled(config: PreTrainedConfig) -> PreTrainedModel:
        found: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        return found

    def __init__(self, folder: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: str):
        self.model = _loaded(AutoModelForSequenceClassification, folder, dtype)
        # A decoder would keep the keys and values of each batch, as if more tokens came.
        self.model.config.get_text_config().use_cache = False
        self.columns: Mapping[str, int] = {str(name): int(number) for number, name in config.id2label.items()}
        # A decoder finds the last token by the padding that its config names; without one it takes one text at a time.
        self.can_pad = tokenizer.pad_token_id is not None and (
            tokenizer.pad_token_id == config.get_text_config().pad_token_id
        )

    def outputs(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.model(**inputs).logits
        return logits


class _Objectives:
    """ArmoRM: each objective, and the gated score."""

    can_pad = True

    @staticmethod
    def unfilled(config: PreTrainedConfig) -> PreTrainedModel:
        return GatedReward(config)

    def __init__(self, folder: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: str):
        self.model = _loaded(GatedReward, folder, dtype)
        self.columns: Mapping[str, int] = {name: number for number, name in enumerate(output_names(config))}
        self._prompt_end = tokenizer.encode(PROMPT_END, add_special_tokens=False)

    def outputs(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = self.model(inputs["input_ids"], inputs["attention_mask"], self._prompt_end)
        return found


class _TokenLogits:
    """A causal language model whose next-token logits at the last position are the outputs."""

    can_pad = True

    @staticmethod
    def unfilled(config: PreTrainedConfig) -> PreTrainedModel:
        found: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return found

    def __init__(self, folder: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: str):
        self.model = _loaded(AutoModelForCausalLM, folder, dtype)
        self.columns: Mapping[str, int] = tokenizer.get_vocab()

    def outputs(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        rows_B, lasts_B = torch.arange(len(ids), device=ids.device), mask.sum(1) - 1

        def last_only(_: nn.Module, hidden: tuple[torch.Tensor]) -> torch.Tensor:
            return hidden[0][rows_B, lasts_B][:, None]

        # Logits of all positions would be gigabytes, and the output layer's place is the same in every model.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(last_only)
        try:
            logits_B1V: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        finally:
            hook.remove()
        return logits_B1V[:, 0]


def _loaded(auto: Any, folder: str, dtype: str) -> PreTrainedModel:
    found: Any = load_weights(auto, folder, "rater", dtype=getattr(torch, dtype), output_loading_info=True)
    model, info = found
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder} has no weights of {missing[0]}, so it cannot rate; name a model with a head for sequence "
            "classification or regression, or set `head: token_logit` for a language model whose reward is a logit"
        )
    return model
