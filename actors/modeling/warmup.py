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
from transformers.configuration_utils import PreTrainedConfig

from actors.kernels.onednn import pack_multiple
from actors.kernels.varlen import VARLEN, packed
from actors.modeling.backbone import backbone_of
from actors.modeling.model_folder import load_config, local_folder, new_format
from actors.modeling.policy import load_causal_lm, save_model
from actors.modeling.tokenizer import TemplateKind
from data.attributes import AttributeSchema
from data.errors import UserError
from data.examples import Example

NUM_COUNTS = 14

CONSTANT = 10.0
"""What every hidden state is to say of itself beside the counts, which have standard deviation 1. A decoder's regression head has no bias,
so the mean of the labels is carried by what is constant in the features, and what varies there is noise in every score: the larger the
constant, the more exactly it is learned."""


@dataclass(frozen=True)
class TokenFeatures:
    """What each token of a vocabulary looks like, [V] each."""

    characters_V: np.ndarray
    sentence_ends_V: np.ndarray
    lines_V: np.ndarray
    questions_V: np.ndarray
    exclamations_V: np.ndarray
    commas_V: np.ndarray
    digits_V: np.ndarray
    words_V: np.ndarray
    first_person_V: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "TokenFeatures":
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        columns = (
            [len(t) for t in texts],
            [sum(c in ".!?" for c in t) for t in texts],
            *([t.count(mark) for t in texts] for mark in "\n?!,"),
            [sum(c.isdigit() for c in t) for t in texts],
            [t[:1].isspace() for t in texts],
            [t.strip() == "I" for t in texts],
        )
        return cls(*(np.array(c, np.float32) for c in columns))

    def counts(self, ids_N: np.ndarray, question_Q: np.ndarray) -> np.ndarray:
        """Running counts after each token of an answer to the tokens of a question, float32 [N, 14]: seven logarithms, five rates, what
        share of the question's words has come up, and a constant."""
        position_N = np.arange(1, len(ids_N) + 1, dtype=np.float32)
        first_seen_N = np.zeros(len(ids_N), np.float32)
        first_seen_N[np.unique(ids_N, return_index=True)[1]] = 1
        asked = np.unique(question_Q)
        taken_up_N = (first_seen_N * np.isin(ids_N, asked)).cumsum() / max(1, len(asked))
        characters_N = self.characters_V[ids_N].cumsum()
        marks = (self.sentence_ends_V, self.lines_V, self.questions_V, self.exclamations_V, self.commas_V)
        logs = [np.log(position_N), np.log1p(characters_N), *(np.log1p(c[ids_N].cumsum()) for c in marks)]
        sums = [
            first_seen_N.cumsum(),
            characters_N,
            *(c[ids_N].cumsum() for c in (self.digits_V, self.words_V, self.first_person_V)),
        ]
        return np.stack(
            [*logs, *(s / position_N for s in sums), taken_up_N, np.full_like(position_N, CONSTANT)], axis=1
        ).astype(np.float32)


class WarmupHeads(torch.nn.Module):
    """What an answer's hidden states shall know of it. `forward` gives the losses summed over the answers' tokens."""

    def __init__(self, width: int, mean_state: bool = False, surprise: bool = False):
        """`mean_state`: also predict the mean of the hidden states so far; `surprise`: also each token's own loss, its running mean and maximum."""
        super().__init__()
        self.counts = torch.nn.Linear(width, NUM_COUNTS, bias=False)
        self.mean_state = torch.nn.Linear(width, width) if mean_state else None
        self.surprise = torch.nn.Linear(width, 3) if surprise else None

    def forward(
        self,
        hidden_TD: torch.Tensor,
        vocabulary_VD: torch.Tensor,
        ids_T: torch.Tensor,
        positions_N: torch.Tensor,
        answers_N: torch.Tensor,
        counts_NF: torch.Tensor,
    ) -> torch.Tensor:
        """`positions_N` are the answers' tokens; `answers_N` says which answer each belongs to, 0, 0, 1, ..."""
        logits_NV = torch.nn.functional.linear(hidden_TD[positions_N - 1], vocabulary_VD).float()
        nats_N = torch.nn.functional.cross_entropy(logits_NV, ids_T[positions_N], reduction="none")
        hidden_ND = hidden_TD[positions_N]
        loss = nats_N.sum() + (self.counts(hidden_ND).float() - counts_NF).square().mean(1).sum()
        if self.mean_state is not None:
            mean_ND = _running_mean(hidden_ND.detach().float(), answers_N)
            target_ND = torch.nn.functional.layer_norm(mean_ND, mean_ND.shape[1:])
            loss = loss + (self.mean_state(hidden_ND).float() - target_ND).square().mean(1).sum()
        if self.surprise is not None:
            loss = (
                loss + (self.surprise(hidden_ND).float() - _surprise(nats_N.detach(), answers_N)).square().mean(1).sum()
            )
        return loss


class WarmupLoss(torch.nn.Module):
    """`forward` gives, summed over the answers' tokens: negative log-likelihood, mean squared errors of the counts and of the mean state."""

    heads: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.warmup_heads = WarmupHeads(model.config.get_text_config().hidden_size, mean_state=True)

    def forward(self, row: dict[str, Any], **answers: torch.Tensor) -> torch.Tensor:
        hidden_TD = getattr(self.model, self.model.base_model_prefix)(**row).last_hidden_state[0]
        loss: torch.Tensor = self.warmup_heads(
            hidden_TD, self.model.get_output_embeddings().weight, row["input_ids"][0], **answers
        )
        return loss


def _surprise(nats_N: torch.Tensor, answers_N: torch.Tensor) -> torch.Tensor:
    """Of each token: its loss, and the mean and the maximum over its answer so far, each in standard deviations of the row, [N, 3].

    A language model is surprised by what is wrong with an answer, a false fact for one, long before a rater's label tells it why that matters.
    """
    highest_N = torch.cat(
        [
            part.cummax(0).values
            for part in nats_N.split(torch.unique_consecutive(answers_N, return_counts=True)[1].tolist())
        ]
    )
    found_N3 = torch.stack([nats_N, _running_mean(nats_N[:, None], answers_N)[:, 0], highest_N], 1)
    return (found_N3 - found_N3.mean(0)) / (found_N3.std(0, correction=0) + 1e-6)


def _running_mean(hidden_ND: torch.Tensor, answers_N: torch.Tensor) -> torch.Tensor:
    """The mean over each answer's tokens up to and with each token."""
    sums_ND = hidden_ND.cumsum(0)
    position_N = torch.arange(len(answers_N), device=answers_N.device)
    first_N = torch.zeros_like(position_N).scatter_reduce(0, answers_N, position_N, "amin", include_self=False)[
        answers_N
    ]
    before_ND = sums_ND[first_N] - hidden_ND[first_N]
    return (sums_ND - before_ND) / (position_N - first_N + 1)[:, None]


@dataclass(frozen=True)
class AnswerFeatures:
    """The counts of a corpus: what each token looks like to this tokenizer, and how the counts are spread."""

    letters: TokenFeatures
    mean_F: np.ndarray
    """Mean of each count, 0 for the constant."""
    spread_F: np.ndarray
    """Standard deviation of each count, 1 for the constant."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> AnswerFeatures:
        """`examples` are a sample of what will be trained on."""
        letters = TokenFeatures.of(tokenizer)
        counts_NF = np.concatenate([_counts(letters, example) for example in examples])
        mean_F, spread_F = counts_NF.mean(0), counts_NF.std(0) + 1e-6
        mean_F[-1], spread_F[-1] = 0, 1
        return cls(letters, mean_F, spread_F)

    def inputs(self, examples: Sequence[Example], device: torch.device | str) -> dict[str, Any]:
        """What SurfaceHeads wants to know of the answers (the trained tokens) of a packed row."""
        positions_N = np.flatnonzero(np.concatenate([e.trained_T for e in examples]))
        answers = [_answer_of(e) for e in examples]
        offsets = np.cumsum([0, *(int(a[-1]) + 1 for a in answers)])
        counts_NF = np.concatenate([_counts(self.letters, e) for e in examples])
        return {
            "positions_N": torch.from_numpy(positions_N).to(device),
            "answers_N": torch.from_numpy(np.concatenate([a + o for a, o in zip(answers, offsets, strict=False)])).to(
                device
            ),
            "counts_NF": torch.from_numpy((counts_NF - self.mean_F) / self.spread_F).float().to(device),
        }


def require_decoder(config: PreTrainedConfig) -> None:
    """Raise UserError for an encoder."""
    if not backbone_of(config).causal:
        raise UserError(
            f"predictor.warmup goes on training a language model, which a {config.model_type} backbone is not; set predictor.warmup to null"
        )


@dataclass(frozen=True)
class WarmupTask:
    """What the learner needs to warm up the causal language model `base`; what it saves is a causal language model again."""

    base: str
    schema: AttributeSchema
    template: TemplateKind
    answer_features: AnswerFeatures

    def build(self) -> WarmupLoss:
        """Raises UserError if the backbone is no decoder."""
        folder = local_folder(self.base)
        require_decoder(load_config(folder))
        return WarmupLoss(load_causal_lm(folder, new_format(folder, self.schema, self.template), VARLEN))

    def start(self, module: torch.nn.Module, rows: Iterable[dict[str, Any]]) -> str:
        return ""

    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        """Forward arguments for one packed row."""
        return {
            "row": packed([e.ids_T for e in examples], device, pack_multiple(device, pack_tokens))
        } | self.answer_features.inputs(examples, device)

    def target_weight(self, example: Example) -> float:
        return float(example.trained_T.sum())

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None:
        assert isinstance(module, WarmupLoss)
        save_model(
            module.model, state, new_format(local_folder(self.base), self.schema, self.template), folder, labels=False
        )


def _answer_of(example: Example) -> np.ndarray:
    """Which answer each trained token belongs to, int64 [N]: the turn end is an answer's last token."""
    return np.searchsorted(example.turn_ends_S, np.flatnonzero(example.trained_T)).astype(np.int64)


def _counts(letters: TokenFeatures, example: Example) -> np.ndarray:
    """Of all answers of an example; what stands between an answer and the one before it is its question."""
    counts, begin = [], 0
    for end in example.turn_ends_S + 1:
        trained_T, ids_T = example.trained_T[begin:end], example.ids_T[begin:end]
        counts.append(letters.counts(ids_T[trained_T], ids_T[~trained_T]))
        begin = end
    return np.concatenate(counts)
