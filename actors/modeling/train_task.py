"""What can be trained: the contract between the learner and its tasks (language model, policy, predictor, warm-up)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from data.examples import Example


class TrainTask(Protocol):
    """What is trained. Travels to the workers."""

    def build(self) -> torch.nn.Module:
        """A module whose forward(**inputs) is the summed loss of a packed row, with the network as `model` and the names of its `heads`."""
        ...

    def start(self, module: torch.nn.Module, rows: Iterable[dict[str, Any]]) -> str:
        """Set what can be set before the first step, from this rank's share of the examples as packed rows; returns what to say of it."""
        ...

    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        """Forward arguments for one packed row, of at most `pack_tokens` tokens as all rows of the training are (0 = unknown)."""
        ...

    def target_weight(self, example: Example) -> float:
        """What an example counts in the mean: its trained tokens, or the weights of its valid labels."""
        ...

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None: ...
