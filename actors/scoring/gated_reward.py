"""ArmoRM's layout: a Llama with a regression layer of several objectives, gated by the prompt into one score.

The parts and their names are those of the checkpoint (RLHFlow/ArmoRM-Llama3-8B-v0.1, https://arxiv.org/abs/2406.12845),
so that none of its own code is needed. Knows no text and no tokenizer.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

ARCHITECTURE = "LlamaForRewardModelWithGating"
"""In `architectures` of its config.json."""
PROMPT_END = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""Between prompt and answer; the gate reads the prompt at the first of these tokens."""
SCORE = "score"
"""The output after the objectives: the gated sum of all."""
OBJECTIVES = (
    "helpsteer-helpfulness", "helpsteer-correctness", "helpsteer-coherence", "helpsteer-complexity",
    "helpsteer-verbosity", "ultrafeedback-overall_score", "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness", "ultrafeedback-honesty", "ultrafeedback-helpfulness", "beavertails-is_safe",
    "prometheus-score", "argilla-overall_quality", "argilla-judge_lm", "code-complexity", "code-style",
    "code-explanation", "code-instruction-following", "code-readability",
)  # fmt: skip
"""The regression layer's outputs in order, as the model's card lists them; its config has no names."""


class Gate(nn.Module):
    """The prompt's hidden state -> a weight for each objective."""

    def __init__(self, config: LlamaConfig, num_objectives: int):
        super().__init__()
        width, hidden = config.hidden_size, getattr(config, "gating_hidden_dim", 1024)
        widths = [width, *[hidden] * getattr(config, "gating_n_hidden", 3)]
        self.temperature = getattr(config, "gating_temperature", 10)
        self.logit_scale = nn.Parameter(torch.ones(1))
        inner = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
        self.layers = nn.ModuleList([*inner, nn.Linear(widths[-1], num_objectives)])

    def forward(self, prompt_BD: torch.Tensor) -> torch.Tensor:
        *inner, last = self.layers
        for layer in inner:
            prompt_BD = torch.relu(layer(prompt_BD))
        weights: torch.Tensor = (last(prompt_BD) / self.temperature).softmax(-1) * self.logit_scale
        return weights


class GatedReward(LlamaPreTrainedModel):
    """Token ids -> [B, objectives + 1]: every objective, then the score."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        num = num_objectives(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, num, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.zeros(num, num), requires_grad=False)
        self.gating = Gate(config, num)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt_end: Sequence[int]) -> torch.Tensor:
        """Padding is on the right. The score of a text without `prompt_end` (PROMPT_END's tokens) is NaN."""
        hidden_BTD = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows_B = torch.arange(len(input_ids), device=input_ids.device)
        rewards_BO = self.regression_layer(hidden_BTD[rows_B, attention_mask.sum(1) - 1])
        ends = [_last_place(ids, prompt_end) for ids in input_ids.tolist()]
        gates_BO = self.gating(hidden_BTD[rows_B, torch.tensor([end or 0 for end in ends], device=input_ids.device)])
        score_B = (gates_BO * (rewards_BO @ self.reward_transform_matrix)).sum(1)
        known_B = torch.tensor([end is not None for end in ends], device=input_ids.device)
        return torch.cat([rewards_BO, score_B.where(known_B, torch.nan)[:, None]], 1)


def num_objectives(config: LlamaConfig) -> int:
    return int(getattr(config, "num_objectives", len(OBJECTIVES)))


def output_names(config: LlamaConfig) -> list[str]:
    """Of all outputs in order; objectives of another number than the card's are called by their numbers."""
    num = num_objectives(config)
    return [*(OBJECTIVES if num == len(OBJECTIVES) else map(str, range(num))), SCORE]


def _last_place(ids: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Where `wanted` begins in `ids` for the last time."""
    starts = range(len(ids) - len(wanted), -1, -1)
    return next((n for n in starts if list(ids[n : n + len(wanted)]) == list(wanted)), None)
