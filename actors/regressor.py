"""The attribute regressor: a backbone and one linear regression head per attribute; its loss, its inputs, its folder.

Saved so that `AutoModelForSequenceClassification` loads it. Knows no training loop (`actors.learner`); scoring with it is
`actors.predictor`. Source: HelpSteer (arXiv 2311.09528) section 4; NeMo-Aligner `megatron_gpt_regression_reward_model.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from actors.attention import VARLEN, packed
from actors.checkpoint import Format, local_folder, new_format
from actors.policy import fit_embeddings, save_model
from actors.tokenizer import TemplateKind
from data.attributes import AttributeSchema
from data.feed import Example


class PredictorLoss(torch.nn.Module):
    """`scores` at each turn end; `forward` gives the summed squared error over the valid labels of a packed row."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def scores(self, row: dict[str, Any], turn_ends_S: torch.Tensor) -> torch.Tensor:
        """Raw scores in the attributes' own units, float32, shape [S, A]."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden_SD = backbone(**row).last_hidden_state[0, turn_ends_S]
        # The head runs in fp32 whatever the backbone runs in: scores are compared to the hundredth of a point.
        with torch.autocast(hidden_SD.device.type, enabled=False):
            return self.model.score(hidden_SD.to(self.model.score.weight.dtype)).float()

    def forward(self, row: dict[str, Any], turn_ends_S: torch.Tensor, values_SA: torch.Tensor) -> torch.Tensor:
        scores_SA = self.scores(row, turn_ends_S)
        valid_SA = ~values_SA.isnan()
        return ((scores_SA - values_SA.nan_to_num()) ** 2 * valid_SA).sum()


@dataclass(frozen=True)
class PredictorTask:
    """What the learner needs to train a predictor on the backbone `base`."""

    base: str
    schema: AttributeSchema
    template: TemplateKind

    def build(self) -> PredictorLoss:
        folder = local_folder(self.base)
        return PredictorLoss(load_regressor(folder, new_format(folder, self.schema, self.template), VARLEN))

    def inputs(self, examples: Sequence[Example], device: torch.device | str) -> dict[str, Any]:
        """Forward arguments for one packed row; turn ends are shifted by the segments before them."""
        starts = np.cumsum([0, *(len(e.ids_T) for e in examples)])
        ends_S = np.concatenate([e.turn_ends_S + start for e, start in zip(examples, starts, strict=False)])
        return {
            "row": packed([e.ids_T for e in examples], device),
            "turn_ends_S": torch.from_numpy(ends_S.astype(np.int64)).to(device),
            "values_SA": torch.from_numpy(np.concatenate([e.values_SA for e in examples])).to(device),
        }

    def num_targets(self, example: Example) -> int:
        return int((~np.isnan(example.values_SA)).sum())

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None:
        assert isinstance(module, PredictorLoss)
        save_model(module.model, state, new_format(local_folder(self.base), self.schema, self.template), folder, labels=False)


def load_regressor(folder: str, format: Format, attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Backbone and heads; heads the folder lacks are new. Raises ValueError for an unreadable folder or an encoder backbone."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            id2label=dict(enumerate(format.schema.names)),
            label2id={name: i for i, name in enumerate(format.schema.names)},
            problem_type="regression",
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"no readable backbone at {folder}: {str(error).splitlines()[0]}") from None
    if not hasattr(model, "score"):
        raise ValueError(
            f"{type(model).__name__} has no `score` head: the predictor needs a decoder backbone (Llama, Qwen, Mistral, ...); set base.model to one"
        )
    fit_embeddings(model, format)
    model.score.float()
    return model
