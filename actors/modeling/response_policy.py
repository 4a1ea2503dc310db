"""SteerLM 2.0's loss: the policy's shares of the answers to one prompt are moved towards their target weights.

An example is a prompt's group: all its sampled answers, each behind the prompt, as segments of one pack, so that one
forward has what the weights of the group need. Source: HelpSteer2 (arXiv 2406.08673, section 4.5) and NeMo-Aligner's
`gpt_steerlm_model.py`. Knows no training loop and no rating.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.kernels.cross_entropy import IGNORED
from actors.kernels.transfer import to_device
from actors.modeling.policy import PolicyLoss, PolicyTask
from data.examples import Example


@dataclass(frozen=True)
class Groups:
    """The answers of a pack, R in G groups one after the other, and what is known of them before the forward."""

    answers_N: torch.Tensor
    """The answer that each target belongs to; any for a target that counts nothing."""
    groups_R: torch.Tensor
    """The group of each answer."""
    sizes_G: torch.Tensor
    """Answers of each group."""
    log_target_R: torch.Tensor
    """log w': the target shares."""
    log_before_R: torch.Tensor
    """log Q'(y|a,x) of the policy that wrote the answers."""

    def of_group(self, values_R: torch.Tensor) -> torch.Tensor:
        """The sum of each group [G]."""
        return values_R.new_zeros(len(self.sizes_G)).index_add(0, self.groups_R, values_R)

    def of_answer(self, values_N: torch.Tensor) -> torch.Tensor:
        """The sum of each answer [R]."""
        return values_N.new_zeros(len(self.groups_R)).index_add(0, self.answers_N, values_N)

    def log_shares(self, values_R: torch.Tensor) -> torch.Tensor:
        """The log-softmax of `values_R` within each group."""
        highest_G = values_R.new_full((len(self.sizes_G),), -torch.inf)
        highest_G = highest_G.scatter_reduce(0, self.groups_R, values_R, "amax")
        values_R = values_R - highest_G[self.groups_R]
        return values_R - self.of_group(values_R.exp()).log()[self.groups_R]


def group_weights(groups: Groups, nats_N: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each target counts in the loss [N], and KL(w'||b') of all groups together.

    b' are the live policy's shares, softmax of log Q - log Q'. An answer counts w' - b' times, over the mean number of
    tokens of its group's answers: below 0 it becomes less likely.
    """
    log_own_R = groups.log_shares(-groups.of_answer(nats_N) - groups.log_before_R)
    shares_R = groups.log_target_R.exp()
    divergence = (shares_R * (groups.log_target_R - log_own_R)).sum()
    return spread(groups, shares_R - log_own_R.exp(), targets_N), divergence


def spread(groups: Groups, weights_R: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The weight of each answer on its targets [N], over the mean tokens of its group's answers.

    With the weights 1 / n it is the mean over the tokens of a group: plain fine-tuning.
    """
    tokens_R = groups.of_answer((targets_N != IGNORED).to(weights_R.dtype))
    mean_tokens_G = groups.of_group(tokens_R) / groups.sizes_G
    return (weights_R / mean_tokens_G[groups.groups_R])[groups.answers_N]


class GroupLoss(PolicyLoss):
    """`forward` gives KL(w'||b') in nats, summed over the groups of a pack, with the gradient of the weighted loss.

    That is the gradient of the very KL, each group's over the mean tokens of its answers.
    """

    def forward(  # type: ignore[override]
        self, pack: dict[str, Any], positions_N: torch.Tensor, targets_N: torch.Tensor, groups: Groups
    ) -> torch.Tensor:
        divergences: list[torch.Tensor] = []

        def weigh(nats_N: torch.Tensor) -> torch.Tensor:
            factors_N, divergence = group_weights(groups, nats_N, targets_N)
            divergences.append(divergence)
            return factors_N

        loss = self.loss(pack, positions_N, targets_N, weigh)
        return loss + (divergences[-1] - loss).detach()


class GroupTask(PolicyTask):
    """Trains a policy on groups of answers; an example's `values_SA` are log w' and log Q' of each answer."""

    def build(self) -> PolicyLoss:
        """Raises UserError as the policy's task does."""
        return GroupLoss(super().build().model)

    def pack(self, examples: Sequence[Example], device: torch.device | str, multiple: int) -> dict[str, Any]:
        """The answers are segments: none sees another. Only with packing."""
        assert self.packing, "the settings refuse packing: off"
        return super().pack([answer for example in examples for answer in answers_of(example)], device, multiple)

    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        found = super().inputs(examples, device, pack_tokens)
        tokens = [int(answer.trained_T.sum()) for example in examples for answer in answers_of(example)]
        answers_N = np.repeat(np.arange(len(tokens)), tokens)
        sizes_G = np.array([len(example.turn_ends_S) for example in examples])
        values_RA = np.concatenate([example.values_SA for example in examples]).astype(np.float32)
        padded_N = np.pad(answers_N, (0, len(found["targets_N"]) - len(answers_N)))
        arrays = (padded_N, np.repeat(np.arange(len(examples)), sizes_G), sizes_G, values_RA[:, 0], values_RA[:, -1])
        return found | {"groups": Groups(*(to_device(np.ascontiguousarray(array), device) for array in arrays))}

    def target_weight(self, example: Example) -> float:
        """A group counts once, whatever the number and the length of its answers."""
        return 1.0

    def start(self, module: torch.nn.Module, packs: Iterable[dict[str, Any]]) -> str:
        return "SteerLM 2.0: the loss is KL(w'||b') of the target weights and the policy's, in nats, mean over prompts"


def answers_of(example: Example) -> list[Example]:
    """The answers of a group, each an example of its own."""
    bounds = example.turn_ends_S[:-1] + 1
    parts = zip(np.split(example.ids_T, bounds), np.split(example.trained_T, bounds), strict=True)
    nothing = np.zeros(0, np.int32), np.zeros((0, 0), np.float32)
    return [Example(ids_T, trained_T, *nothing) for ids_T, trained_T in parts]
