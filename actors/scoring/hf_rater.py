"""A reward model, regressor or classifier of others as a rater.

Each answer is scored as plain transformers scores it; answers of about the same length share a padded batch. Knows no
row, and not where a model has its outputs.
"""

from collections.abc import Iterator, Sequence

import jinja2
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from actors.kernels.devices import own_device
from actors.modeling.backbone import max_positions
from actors.modeling.control_text import surviving_gap
from actors.modeling.model_folder import load_config, load_tokenizer, local_folder
from actors.modeling.tokenizer import chat_ids
from actors.scoring.reward_heads import reward_head
from data.attributes import AttributeSchema
from data.errors import UserError
from data.plain_text import Neutralizer, longest_first
from data.rater_settings import HfRaterSettings
from data.turns import Rated, Turn

TOO_LONG, NO_TEMPLATE, NO_NUMBER = "too long", "chat template", "no number"
"""Reasons why there is no value."""


class HfRater:
    """A model of others, on this process's own device."""

    def __init__(self, settings: HfRaterSettings, schema: AttributeSchema, dtype: str, batch_tokens: int):
        """Raises UserError if there is no such model, or if it lacks an output or a chat template that is asked for."""
        self._settings, self._batch_tokens = settings, batch_tokens
        folder = local_folder(settings.model)
        self._config, self._tokenizer = load_config(folder), load_tokenizer(folder)
        self._head, self._device = reward_head(settings, folder, self._config, self._tokenizer, dtype), own_device()
        self._head.model.to(self._device).eval()
        self._scales = {name: (schema[name].low, schema[name].high) for name in settings.range}
        self._columns = {name: self._column(output) for name, output in settings.attributes.items()}
        self._neutral = self._neutralizer()
        limits = (settings.max_tokens, max_positions(self._config))
        self._longest = min(limit for limit in limits if limit is not None)
        if settings.reads == "chat" and self._tokenizer.chat_template is None:
            raise UserError(f"{settings.name} has no chat template; set its `reads` to pair or answer")

    def __call__(self, turns: Sequence[Turn]) -> list[Rated]:
        inputs = [self._input(turn) for turn in turns]
        found = [Rated(failed=dict.fromkeys(self._columns, i)) if isinstance(i, str) else Rated() for i in inputs]
        whole = {n: i for n, i in enumerate(inputs) if not isinstance(i, str)}
        for batch in self._batches({n: len(i["input_ids"]) for n, i in whole.items()}):
            for n, outputs in zip(batch, self._outputs([whole[n] for n in batch]), strict=True):
                found[n] = self._rated(outputs)
        return found

    def _input(self, turn: Turn) -> dict[str, list[int]] | str:
        """The model's input without padding, or why there is none."""
        texts = [self._plain(message.content) for message in turn.messages]
        if self._settings.reads == "chat":
            chat = [{"role": "system", "content": self._plain(turn.system)}] if turn.system else []
            chat += [{"role": m.role, "content": t} for m, t in zip(turn.messages, texts, strict=True)]
            try:
                ids = chat_ids(self._tokenizer, chat)
            except jinja2.TemplateError:  # its own way to refuse a system text, or roles in another order
                return NO_TEMPLATE
            found = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        else:
            question = [self._plain(turn.question)] if self._settings.reads == "pair" else []
            found = dict(self._tokenizer(*question, texts[-1]))
        return found if len(found["input_ids"]) <= self._longest else TOO_LONG

    def _batches(self, lengths: dict[int, int]) -> Iterator[list[int]]:
        """Inputs of about the same length, within the budget of tokens when padded; the longest first."""
        batch: list[int] = []
        for n in sorted(lengths, key=lambda n: -lengths[n]):
            if batch and (not self._head.can_pad or (len(batch) + 1) * lengths[batch[0]] > self._batch_tokens):
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    @torch.inference_mode()
    def _outputs(self, inputs: list[dict[str, list[int]]]) -> np.ndarray:
        """[B, outputs], after the activation."""
        pads = {"input_ids": self._tokenizer.pad_token_id or 0, "token_type_ids": self._tokenizer.pad_token_type_id}
        padded = {
            name: pad_sequence([torch.tensor(i[name]) for i in inputs], True, padding_value=pads.get(name, 0))
            for name in inputs[0]
        }
        logits = self._head.outputs({name: t.to(self._device) for name, t in padded.items()}).float()
        if self._settings.activation != "none":
            logits = logits.sigmoid() if self._settings.activation == "sigmoid" else logits.softmax(-1)
        outputs: np.ndarray = logits.cpu().numpy()
        return outputs

    def _rated(self, outputs: np.ndarray) -> Rated:
        values = {name: self._on_scale(name, float(outputs[column])) for name, column in self._columns.items()}
        wrong = {name: NO_NUMBER for name, value in values.items() if not np.isfinite(value)}
        return Rated({name: value for name, value in values.items() if name not in wrong}, wrong)

    def _on_scale(self, name: str, output: float) -> float:
        if name not in self._scales:
            return output
        (low, high), (at_low, at_high) = self._scales[name], self._settings.range[name]
        return low + (output - at_low) / (at_high - at_low) * (high - low)

    def _column(self, output: int | str) -> int:
        named = self._head.columns
        column = named.get(output, -1) if isinstance(output, str) else output
        if column not in named.values():
            raise UserError(
                f"{self._settings.name} has no output {output!r}; it has 0 to {len(named) - 1}, called "
                f"{', '.join(list(named)[:8])}: correct `attributes` in annotate.raters"
            )
        return column

    def _plain(self, text: str) -> str:
        """Text from people is never control, here too; any other stays as it is."""
        return self._neutral(text) if any(token in text for token in self._neutral.spellings) else text

    def _neutralizer(self) -> Neutralizer:
        control = longest_first([t for t in self._tokenizer.get_added_vocab() if len(t) > 1 and t.strip()])
        template = self._tokenizer.chat_template or ""
        return Neutralizer(control, surviving_gap(self._tokenizer, control, template=str(template)))
