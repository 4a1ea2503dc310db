"""The attribute predictor: a decoder backbone and one linear regression head per attribute, read at each answer's end.

All assistant turns of a conversation are scored in one causal forward. Saved so that `AutoModelForSequenceClassification`
loads it. Source: HelpSteer (arXiv 2311.09528) section 4; NeMo-Aligner `megatron_gpt_regression_reward_model.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from actors.attention import VARLEN, packed
from actors.checkpoint import Format, load_format, local_folder, new_format
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


class Predictor:
    """A trained predictor, ready to score token ids: one packed forward for many conversations."""

    def __init__(self, module: PredictorLoss, format: Format):
        self.module, self.format, self.schema = module.eval(), format, format.schema
        self.device = next(module.parameters()).device

    @classmethod
    def load(cls, path: str, dtype: str = "float32", device: str | None = None, num_threads: int | None = None) -> "Predictor":
        """From a local folder or any fsspec URI; raises ValueError if it is no predictor of ours. `num_threads`: CPU threads of this process."""
        if num_threads:
            torch.set_num_threads(num_threads)
        folder = local_folder(path)
        format = load_format(folder)
        model = load_regressor(folder, format, VARLEN, getattr(torch, dtype))
        return cls(PredictorLoss(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))), format)

    @torch.inference_mode()
    def score(self, ids: Sequence[np.ndarray], turn_ends: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Scores of the conversations of one packed row, one float32 array [S, A] each."""
        starts = np.cumsum([0, *(len(i) for i in ids)])
        ends_S = np.concatenate([e + start for e, start in zip(turn_ends, starts, strict=False)]).astype(np.int64)
        scores_SA = self.module.scores(packed(ids, self.device), torch.from_numpy(ends_S).to(self.device)).cpu().numpy()
        return list(np.split(scores_SA, np.cumsum([len(e) for e in turn_ends])[:-1]))
