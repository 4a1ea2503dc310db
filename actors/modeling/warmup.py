"""Self-supervised warm-up of a predictor's backbone: language modeling plus running counts of the answer so far.

An answer's length alone ranks human ratings better than a small predictor does, but a causal language model hardly
knows it at an answer's end: rotary positions hide absolute ones. Here the hidden state of every answer token, rated or
not, also predicts running counts of the answer and the mean of its hidden states. The extra heads are dropped on
export. Knows no ratings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from actors.kernels.cross_entropy import fits, summed_cross_entropy
from actors.kernels.transfer import to_device
from actors.modeling.backbone import backbone_of
from actors.modeling.isolation import causal_lm_attention
from actors.modeling.model_folder import load_config, local_folder
from actors.modeling.policy import load_causal_lm
from actors.modeling.train_task import TrainTask
from data.errors import UserError
from data.examples import Example

NUM_COUNTS = 14

CONSTANT = 10.0
"""A constant target beside the counts, which have standard deviation 1. A decoder's regression head has no bias, so
what is constant in the features carries the mean of the labels, and its variance is noise in every score. A larger
constant is learned more exactly."""


@dataclass(frozen=True)
class TokenFeatures:
    """What the text of each token of a vocabulary looks like, [V] each."""

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
        """Running counts after each token of an answer to the tokens of a question, float32 [N, 14].

        Seven logarithms, five rates, the share of the question's words that the answer has used, and a constant.
        """
        position_N = np.arange(1, len(ids_N) + 1, dtype=np.float32)
        first_seen_N = np.zeros(len(ids_N), np.float32)
        first_seen_N[np.unique(ids_N, return_index=True)[1]] = 1
        question = np.unique(question_Q)
        repeated_N = (first_seen_N * np.isin(ids_N, question)).cumsum() / max(1, len(question))
        characters_N = self.characters_V[ids_N].cumsum()
        marks = (self.sentence_ends_V, self.lines_V, self.questions_V, self.exclamations_V, self.commas_V)
        logs = [np.log(position_N), np.log1p(characters_N), *(np.log1p(c[ids_N].cumsum()) for c in marks)]
        others = (c[ids_N].cumsum() for c in (self.digits_V, self.words_V, self.first_person_V))
        rates = [s / position_N for s in (first_seen_N.cumsum(), characters_N, *others)]
        columns = [*logs, *rates, repeated_N, np.full_like(position_N, CONSTANT)]
        return np.stack(columns, axis=1).astype(np.float32)


class WarmupHeads(torch.nn.Module):
    """Heads on the hidden states of answer tokens. `forward` gives the losses summed over the answers' tokens."""

    def __init__(self, width: int, mean_state: bool = False, surprise: bool = False):
        """`mean_state`: also predict the mean of the hidden states so far; `surprise`: also predict `_surprise`."""
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
        lengths_A: torch.Tensor,
        counts_NF: torch.Tensor,
    ) -> torch.Tensor:
        """`positions_N` are the answers' tokens; `answers_N` is the answer that each belongs to, 0, 0, 1, ...

        `lengths_A`, on the host, are the numbers of tokens of the answers that have any.
        """
        total, nats_N = _nats(hidden_TD[positions_N - 1], vocabulary_VD, ids_T[positions_N])
        hidden_ND = hidden_TD[positions_N]
        loss = total + _squared(self.counts(hidden_ND), counts_NF)
        if self.mean_state is not None:
            mean_ND = _running_mean(hidden_ND.detach().float(), answers_N)
            target_ND = torch.nn.functional.layer_norm(mean_ND, mean_ND.shape[1:])
            loss = loss + _squared(self.mean_state(hidden_ND), target_ND)
        if self.surprise is not None:
            loss = loss + _squared(self.surprise(hidden_ND), _surprise(nats_N.detach(), answers_N, lengths_A))
        return loss


class WarmupLoss(torch.nn.Module):
    """`forward` gives the losses of WarmupHeads of a pack, the negative log-likelihood among them."""

    heads: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.warmup_heads = WarmupHeads(model.config.get_text_config().hidden_size, mean_state=True)

    def forward(self, pack: dict[str, Any], **answers: torch.Tensor) -> torch.Tensor:
        hidden_TD = getattr(self.model, self.model.base_model_prefix)(**pack).last_hidden_state[0]
        vocabulary_VD = self.model.get_output_embeddings().weight
        loss: torch.Tensor = self.warmup_heads(hidden_TD, vocabulary_VD, pack["input_ids"][0], **answers)
        return loss


def _nats(
    hidden_ND: torch.Tensor, vocabulary_VD: torch.Tensor, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihood of the targets: its sum, and each."""
    if not fits(len(targets_N), len(vocabulary_VD)):
        return summed_cross_entropy(hidden_ND, vocabulary_VD, targets_N)
    logits_NV = torch.nn.functional.linear(hidden_ND, vocabulary_VD).float()
    nats_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return nats_N.sum(), nats_N


def _squared(found_NF: torch.Tensor, target_NF: torch.Tensor) -> torch.Tensor:
    """Squared error, mean over the features and sum over the tokens."""
    return (found_NF.float() - target_NF).square().mean(1).sum()


def _surprise(nats_N: torch.Tensor, answers_N: torch.Tensor, lengths_A: torch.Tensor) -> torch.Tensor:
    """Of each token: its loss, its answer's mean and maximum so far, in standard deviations of the pack, [N, 3].

    Errors in an answer, such as false facts, surprise a language model, and a rater's label depends on them.
    """
    highest_N = torch.cat([part.cummax(0).values for part in nats_N.split(lengths_A.tolist())])
    found_N3 = torch.stack([nats_N, _running_mean(nats_N[:, None], answers_N)[:, 0], highest_N], 1)
    return (found_N3 - found_N3.mean(0)) / (found_N3.std(0, correction=0) + 1e-6)


def _running_mean(hidden_ND: torch.Tensor, answers_N: torch.Tensor) -> torch.Tensor:
    """The mean over each answer's tokens up to and with each token."""
    sums_ND = hidden_ND.cumsum(0)
    position_N = torch.arange(len(answers_N), device=answers_N.device)
    firsts_N = torch.zeros_like(position_N).scatter_reduce(0, answers_N, position_N, "amin", include_self=False)
    first_N = firsts_N[answers_N]
    before_ND = sums_ND[first_N] - hidden_ND[first_N]
    return (sums_ND - before_ND) / (position_N - first_N + 1)[:, None]


@dataclass(frozen=True)
class AnswerFeatures:
    """The running counts of answers, normalized over a corpus."""

    tokens: TokenFeatures
    mean_F: np.ndarray
    """Mean of each count, 0 for the constant."""
    std_F: np.ndarray
    """Standard deviation of each count, 1 for the constant."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> "AnswerFeatures":
        """`examples` are a sample of the training examples."""
        tokens = TokenFeatures.of(tokenizer)
        counts_NF = np.concatenate([_counts(tokens, example) for example in examples])
        mean_F, std_F = counts_NF.mean(0), counts_NF.std(0) + 1e-6
        mean_F[-1], std_F[-1] = 0, 1
        return cls(tokens, mean_F, std_F)

    def inputs(self, examples: Sequence[Example], device: torch.device | str) -> dict[str, Any]:
        """The arguments of WarmupHeads about the answers (the trained tokens) of a pack."""
        positions_N = np.flatnonzero(np.concatenate([e.trained_T for e in examples]))
        answers = [_answer_of(e) for e in examples]
        offsets = np.cumsum([0, *(int(a[-1]) + 1 for a in answers)])
        answers_N = np.concatenate([a + o for a, o in zip(answers, offsets, strict=False)])
        counts_NF = np.concatenate([_counts(self.tokens, e) for e in examples])
        return {
            "positions_N": to_device(positions_N, device),
            "answers_N": to_device(answers_N, device),
            "lengths_A": torch.from_numpy(np.unique(answers_N, return_counts=True)[1]),
            "counts_NF": to_device(((counts_NF - self.mean_F) / self.std_F).astype(np.float32), device),
        }


def require_decoder(config: PreTrainedConfig) -> None:
    """Raise UserError for an encoder."""
    if not backbone_of(config).causal:
        raise UserError(
            f"predictor.warmup trains a language model, which a {config.model_type} backbone is not; "
            "set predictor.warmup to null"
        )


@dataclass(frozen=True)
class WarmupTask(TrainTask):
    """Warms up the causal language model `base`; saves a causal language model again."""

    answer_features: AnswerFeatures

    def build(self) -> WarmupLoss:
        """Raises UserError if the backbone is no decoder, or takes no packs."""
        folder = local_folder(self.base)
        config = load_config(folder)
        require_decoder(config)
        return WarmupLoss(load_causal_lm(folder, self.format(), causal_lm_attention(config, self.packing)))

    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        pack = self.pack(examples, device, self.multiple(device, pack_tokens))
        return {"pack": pack} | self.answer_features.inputs(examples, device)


def _answer_of(example: Example) -> np.ndarray:
    """The answer that each trained token belongs to, int64 [N]: the turn end is an answer's last token."""
    return np.searchsorted(example.turn_ends_S, np.flatnonzero(example.trained_T)).astype(np.int64)


def _counts(tokens: TokenFeatures, example: Example) -> np.ndarray:
    """Of all answers of an example; the tokens between two answers are the question of the second."""
    counts, begin = [], 0
    for end in example.turn_ends_S + 1:
        trained_T, ids_T = example.trained_T[begin:end], example.ids_T[begin:end]
        counts.append(tokens.counts(ids_T[trained_T], ids_T[~trained_T]))
        begin = end
    return np.concatenate(counts)
