"""The policy: a causal language model that answers at requested attributes; its loss, its prompts, its folder.

Knows no training loop (`actors.training.trainer`) and no sampling (`actors.generation.transformers_engine`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from actors.kernels.cross_entropy import IGNORED
from actors.kernels.devices import own_device
from actors.kernels.onednn import generate_with_onednn, target_multiple
from actors.kernels.transfer import to_device
from actors.modeling.isolation import causal_lm_attention
from actors.modeling.model_folder import (
    Format,
    fit_embeddings,
    load_config,
    load_format,
    load_weights,
    local_folder,
    text_folder,
)
from actors.modeling.tokenizer import encoder
from actors.modeling.train_task import TrainTask
from actors.modeling.vocabulary_loss import VocabularyLoss
from data.calibration import Calibration
from data.conversation import Message
from data.examples import Example
from data.template import Labels
from data.text_rater import TextRater
from data.tokens import prompt_ids
from data.tool_use import ToolChat
from data.wrapped_template import WrappedTemplate


class PolicyLoss(torch.nn.Module):
    """`forward` gives the summed negative log-likelihood of a pack's trained tokens, in nats."""

    heads: tuple[str, ...] = ()
    """Modules trained in full beside adapters: a policy has none."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.loss = model, VocabularyLoss(model)

    def forward(self, pack: dict[str, Any], positions_N: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        return self.loss(pack, positions_N, targets_N)


@dataclass(frozen=True)
class PolicyTask(TrainTask):
    """Trains a policy, or any causal language model, from `base`."""

    LABELS = True
    calibration: Calibration = field(default_factory=Calibration)
    """How values that a predictor measures stand on the scale of the labels; kept with the model, for its endpoint."""
    text_rater: TextRater = field(default_factory=TextRater)
    """Which labels are measures of the text; kept, too."""

    def format(self) -> Format:
        return replace(super().format(), calibration=self.calibration, text_rater=self.text_rater)

    def build(self) -> PolicyLoss:
        """Raises UserError as `load_causal_lm` does, and for a model that takes no packs."""
        folder = local_folder(self.base)
        attention = causal_lm_attention(load_config(folder), self.packing)
        return PolicyLoss(load_causal_lm(folder, self.format(), attention, padded=True))

    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        """Forward arguments for one pack; position p predicts the token at p + 1."""
        multiple = self.multiple(device, pack_tokens)
        positions_N = np.flatnonzero(np.concatenate([e.trained_T for e in examples])) - 1
        targets_N = np.concatenate([e.ids_T for e in examples])[positions_N + 1]
        padding = (0, -len(positions_N) % target_multiple(multiple))
        targets_N = np.pad(targets_N.astype(np.int64), padding, constant_values=IGNORED)
        return {
            "pack": self.pack(examples, device, multiple),
            "positions_N": to_device(np.pad(positions_N, padding), device),
            "targets_N": to_device(targets_N, device),
        }


def load_causal_lm(
    folder: str, format: Format, attention: str, dtype: torch.dtype = torch.float32, padded: bool = False
) -> PreTrainedModel:
    """Any HF causal LM, with embeddings for the format's control tokens; raises UserError if `folder` is unreadable.

    `padded`: for training, see `fit_embeddings`.
    """
    what = "causal language model"
    model = load_weights(AutoModelForCausalLM, folder, what, dtype=dtype, attn_implementation=attention)
    fit_embeddings(model, format, padded)
    return model


class PolicyText:
    """The text side of a trained policy: prompts, stop tokens, decoding. Needs no weights: an engine may hold them."""

    def __init__(self, format: Format, name: str, folder: str, max_tokens: int, end_ids: int | list[int] | None):
        """`max_tokens`: longest context, prompt and answer together; `end_ids`: from the model's generation config."""
        self.format, self.name, self.folder, self.max_tokens = format, name, folder, max_tokens
        self.tokenizer, self.template, self.schema = format.tokenizer, format.template, format.schema
        self._encode = encoder(format.tokenizer)
        ids = {self.tokenizer.eos_token_id, self._turn_end(), *(end_ids if isinstance(end_ids, list) else [end_ids])}
        self.stop_ids = frozenset(int(i) for i in ids if i is not None)
        """Tokens that end an answer: the template's turn end, the model's own end of sequence, and `end_ids`."""

    @classmethod
    def load(cls, path: str) -> "PolicyText":
        """From a local folder or any fsspec URI; raises UserError if it is no policy of ours."""
        folder = text_folder(path)
        format, config = load_format(folder), load_config(folder)
        try:
            end_ids = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:  # a model need not have one
            end_ids = getattr(config, "eos_token_id", None)
        return PolicyText(format, _name(path), folder, _max_tokens(config), end_ids)

    def prompt(
        self, system: str, messages: Sequence[Message], attributes: Mapping[str, float] | None, labels: Labels = ()
    ) -> list[int]:
        """Ids to generate from; `labels` are those of earlier assistant turns."""
        return prompt_ids(self.template, self._encode, system, messages, attributes, labels)

    @property
    def tools_template(self) -> str:
        """The model's own chat template, which may know tools; "" if prompts are not made with it."""
        return self.template.base if isinstance(self.template, WrappedTemplate) else ""

    def tool_prompt(
        self, system: str, chat: ToolChat, attributes: Mapping[str, float] | None, labels: Labels = ()
    ) -> list[int]:
        """Ids to generate from, of a conversation with tools; `labels` are those of earlier assistant turns.

        Raises UserError if the template refuses it.
        """
        assert isinstance(self.template, WrappedTemplate), "only a model's own chat template knows tools"
        return self._encode(self.template.tool_prompt(system, chat, labels, attributes))

    def raw_prompt(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of `text` alone, without a template; `special_tokens`: behind what the tokenizer itself puts first.

        As everywhere, a control token's spelling in it is plain text.
        """
        return [*(self._first_ids if special_tokens else ()), *self._encode(self.template.plain(text))]

    @cached_property
    def _first_ids(self) -> list[int]:
        ids = self.tokenizer("a").input_ids
        return [ids[0]] if len(ids) > 1 and ids[0] == self.tokenizer.bos_token_id else []

    def name_of(self, token: int) -> str:
        """The text of one token alone; a control token's name."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The answer's text, control tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generation(self) -> dict[str, Any]:
        """A generation config: plain `generate`, and any engine that reads it, ends an answer where our engines do."""
        try:
            config = GenerationConfig.from_pretrained(self.folder)
        except OSError:  # a model need not have one
            config = GenerationConfig()
        config.eos_token_id, config.pad_token_id = sorted(self.stop_ids), self.tokenizer.pad_token_id
        config._from_model_config = False  # or transformers would rebuild it from config.json, which knows one end only
        return dict(json.loads(config.to_json_string(use_diff=True)))

    def _turn_end(self) -> int:
        turns = [Message("user", "a"), Message("assistant", "b")]
        return self._encode(self.template.pieces("", turns, ())[-1].text)[-1]


class Policy(PolicyText):
    """A trained policy, ready to answer: weights, tokenizer, template and schema of one checkpoint."""

    def __init__(self, model: PreTrainedModel, format: Format, name: str, folder: str):
        generation = getattr(model.generation_config, "eos_token_id", None)
        super().__init__(format, name, folder, _max_tokens(model.config), generation)
        self.model = model.eval()

    @classmethod
    def load(cls, path: str, dtype: str = "float32", device: str | None = None) -> "Policy":
        """From a folder or fsspec URI; raises UserError if it is no policy of ours.

        `device`: None = this process's own (`actors.kernels.devices`), the CPU unless Ray assigned a GPU to it.
        """
        folder = local_folder(path)
        format = load_format(folder)
        attention = causal_lm_attention(load_config(folder), packing=False)
        model = load_causal_lm(folder, format, attention, getattr(torch, dtype))
        generate_with_onednn(model.to(own_device(device)))
        return cls(model, format, _name(path), folder)


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def _max_tokens(config: PreTrainedConfig) -> int:
    return int(config.get_text_config().max_position_embeddings)
