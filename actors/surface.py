"""Self-supervised warm-up of a predictor's backbone: it goes on as a language model and learns to keep count of the answer so far.

People's ratings lean on what an answer looks like (its length alone ranks them better than a small predictor does), and a causal language
model has little reason to know that at an answer's end: rotary positions hide absolute ones. So at every token of every answer, rated or
not, the hidden state also predicts running counts of the answer and the mean of the hidden states so far. Needs no label; the extra heads
are dropped on export. Knows no ratings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from actors.attention import VARLEN, packed
from actors.checkpoint import local_folder, new_format
from actors.policy import load_causal_lm, save_model
from actors.tokenizer import TemplateKind
from data.attributes import AttributeSchema
from data.feed import Example

NUM_COUNTS = 9


@dataclass(frozen=True)
class Letters:
    """What each token of a vocabulary looks like, [V] each."""

    characters_V: np.ndarray
    sentence_ends_V: np.ndarray
    lines_V: np.ndarray
    digits_V: np.ndarray
    words_V: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Letters":
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        columns = (
            [len(t) for t in texts],
            [sum(c in ".!?" for c in t) for t in texts],
            [t.count("\n") for t in texts],
            [sum(c.isdigit() for c in t) for t in texts],
            [t[:1].isspace() for t in texts],
        )
        return cls(*(np.array(c, np.float32) for c in columns))

    def counts(self, ids_N: np.ndarray) -> np.ndarray:
        """Running counts after each token of an answer, float32 [N, 9]: four logarithms, four rates, and the constant 1."""
        position_N = np.arange(1, len(ids_N) + 1, dtype=np.float32)
        first_seen_N = np.zeros(len(ids_N), np.float32)
        first_seen_N[np.unique(ids_N, return_index=True)[1]] = 1
        characters_N = self.characters_V[ids_N].cumsum()
        logs = [np.log(position_N), np.log1p(characters_N), *(np.log1p(c[ids_N].cumsum()) for c in (self.sentence_ends_V, self.lines_V))]
        rates = [first_seen_N.cumsum(), characters_N, self.digits_V[ids_N].cumsum(), self.words_V[ids_N].cumsum()]
        # A decoder's regression head has no bias: the constant gives it something to carry the mean of the labels with.
        return np.stack([*logs, *(r / position_N for r in rates), np.ones_like(position_N)], axis=1).astype(np.float32)


class SurfaceLoss(torch.nn.Module):
    """`forward` gives, summed over the answers' tokens: negative log-likelihood, mean squared errors of the counts and of the mean state."""

    heads: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        width = model.config.get_text_config().hidden_size
        self.counts = torch.nn.Linear(width, NUM_COUNTS, bias=False)
        self.mean_state = torch.nn.Linear(width, width)

    def forward(self, row: dict[str, Any], positions_N: torch.Tensor, answers_N: torch.Tensor, counts_NF: torch.Tensor) -> torch.Tensor:
        """`positions_N` are the answers' tokens; `answers_N` says which answer each belongs to, 0, 0, 1, ..."""
        hidden_TD = getattr(self.model, self.model.base_model_prefix)(**row).last_hidden_state[0]
        logits_NV = self.model.get_output_embeddings()(hidden_TD[positions_N - 1])
        loss = torch.nn.functional.cross_entropy(logits_NV.float(), row["input_ids"][0, positions_N], reduction="sum")
        hidden_ND = hidden_TD[positions_N]
        loss = loss + (self.counts(hidden_ND).float() - counts_NF).square().mean(1).sum()
        mean_ND = _running_mean(hidden_ND.detach().float(), answers_N)
        target_ND = torch.nn.functional.layer_norm(mean_ND, mean_ND.shape[1:])
        return loss + (self.mean_state(hidden_ND).float() - target_ND).square().mean(1).sum()


def _running_mean(hidden_ND: torch.Tensor, answers_N: torch.Tensor) -> torch.Tensor:
    """The mean over each answer's tokens up to and with each token."""
    sums_ND = hidden_ND.cumsum(0)
    position_N = torch.arange(len(answers_N), device=answers_N.device)
    first_N = torch.zeros_like(position_N).scatter_reduce(0, answers_N, position_N, "amin", include_self=False)[answers_N]
    before_ND = sums_ND[first_N] - hidden_ND[first_N]
    return (sums_ND - before_ND) / (position_N - first_N + 1)[:, None]


@dataclass(frozen=True)
class SurfaceTask:
    """What the learner needs to warm up the causal language model `base`; what it saves is a causal language model again."""

    base: str
    schema: AttributeSchema
    template: TemplateKind
    letters: Letters
    mean_F: np.ndarray
    """Mean of each count, 0 for the constant."""
    spread_F: np.ndarray
    """Standard deviation of each count, 1 for the constant."""

    @classmethod
    def of(cls, base: str, schema: AttributeSchema, template: TemplateKind, examples: Sequence[Example]) -> "SurfaceTask":
        """The task with the moments of the counts in `examples`, a sample of what will be trained on."""
        letters = Letters.of(new_format(local_folder(base), schema, template).tokenizer)
        counts_NF = np.concatenate([_counts(letters, example) for example in examples])
        mean_F, spread_F = counts_NF.mean(0), counts_NF.std(0) + 1e-6
        mean_F[-1], spread_F[-1] = 0, 1
        return cls(base, schema, template, letters, mean_F, spread_F)

    def build(self) -> SurfaceLoss:
        folder = local_folder(self.base)
        return SurfaceLoss(load_causal_lm(folder, new_format(folder, self.schema, self.template), VARLEN))

    def start(self, module: torch.nn.Module, rows: Iterable[dict[str, Any]]) -> str:
        return ""

    def inputs(self, examples: Sequence[Example], device: torch.device | str) -> dict[str, Any]:
        """Forward arguments for one packed row."""
        positions_N = np.flatnonzero(np.concatenate([e.trained_T for e in examples]))
        answers = [_answer_of(e) for e in examples]
        offsets = np.cumsum([0, *(int(a[-1]) + 1 for a in answers)])
        counts_NF = np.concatenate([_counts(self.letters, e) for e in examples])
        return {
            "row": packed([e.ids_T for e in examples], device),
            "positions_N": torch.from_numpy(positions_N).to(device),
            "answers_N": torch.from_numpy(np.concatenate([a + o for a, o in zip(answers, offsets, strict=False)])).to(device),
            "counts_NF": torch.from_numpy((counts_NF - self.mean_F) / self.spread_F).float().to(device),
        }

    def target_weight(self, example: Example) -> float:
        return float(example.trained_T.sum())

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None:
        assert isinstance(module, SurfaceLoss)
        save_model(module.model, state, new_format(local_folder(self.base), self.schema, self.template), folder, labels=False)


def _answer_of(example: Example) -> np.ndarray:
    """Which answer each trained token belongs to, int64 [N]: the turn end is an answer's last token."""
    return np.searchsorted(example.turn_ends_S, np.flatnonzero(example.trained_T)).astype(np.int64)


def _counts(letters: Letters, example: Example) -> np.ndarray:
    ids_N, answer_N = example.ids_T[example.trained_T], _answer_of(example)
    return np.concatenate([letters.counts(ids_N[answer_N == answer]) for answer in np.unique(answer_N)])
