"""What can be trained: the contract between the trainer and its tasks (language model, policy, predictor, warm-up)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from actors.kernels.onednn import pack_multiple
from actors.kernels.varlen import alone, packed
from actors.modeling.model_folder import Format, new_format, save_model, text_folder
from actors.modeling.settings import TemplateKind
from data.attributes import AttributeSchema
from data.examples import Example


@dataclass(frozen=True)
class TrainTask(ABC):
    """A model and its loss. Ray sends it to the workers."""

    LABELS: ClassVar[bool] = False
    """Does the chat template of the saved model write label lines?"""

    base: str
    """The model to start from: a folder or URI of ours, or any Hugging Face model."""
    schema: AttributeSchema
    template: TemplateKind
    packing: bool = field(default=True, kw_only=True)
    """False = one conversation in each forward, read as plain transformers reads it."""

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """A module with the network as `model` and its `heads`; forward(**inputs) is the summed loss of a pack."""

    @abstractmethod
    def inputs(self, examples: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
        """Forward arguments for one pack of `examples`; `pack_tokens` is the budget of all packs (0 = unknown).

        Without packing a pack is one example.
        """

    def multiple(self, device: torch.device | str, pack_tokens: int) -> int:
        """The number of tokens of a pack is a multiple of this."""
        return pack_multiple(device, pack_tokens) if self.packing else 1

    def pack(self, examples: Sequence[Example], device: torch.device | str, multiple: int) -> dict[str, Any]:
        """The model's inputs for one pack."""
        if self.packing:
            return packed([e.ids_T for e in examples], device, multiple)
        (one,) = examples
        return alone(one.ids_T, device)

    def start(self, module: torch.nn.Module, packs: Iterable[dict[str, Any]]) -> str:
        """Prepare `module` before the first step with this rank's packed examples; returns a line for the log."""
        return ""

    def target_weight(self, example: Example) -> float:
        """What an example counts in the mean: its trained tokens, or the weights of its valid labels."""
        return float(example.trained_T.sum())

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the loss's parts, for a message; () = it has one."""
        return ()

    def loss_parts(self, module: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
        """The parts of a pack's loss, by name."""
        return {}

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None:
        """Plain Hugging Face safetensors and tokenizer; `state` is the whole module's, gathered on the CPU."""
        save_model(module.model, state, self.format(), folder, self.LABELS)

    def format(self) -> Format:
        """The format of the model to start from, with this schema and template."""
        return new_format(text_folder(self.base), self.schema, self.template)
