"""What a user would score answers with instead of ours: transformers' own pipeline. Benches measure against it, nothing else uses it."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoTokenizer, pipeline

from data.conversation import Conversation


class PipelineScorer:
    """`pipeline("text-classification")` on a predictor folder, used as its documentation says. Scores the last answer of a conversation."""

    def __init__(self, folder: str, max_tokens: int):
        """`max_tokens`: longer conversations keep their end, as ours do."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left")
        self.pipe = pipeline("text-classification", model=folder, tokenizer=self.tokenizer, device="cpu", dtype=torch.float32)
        self.names = [self.pipe.model.config.id2label[i] for i in range(self.pipe.model.config.num_labels)]
        self.limits = {"truncation": True, "max_length": max_tokens, "padding": True}

    def texts(self, rows: Sequence[Conversation]) -> list[str]:
        """The conversations as the saved chat template writes them: the very text that ours reads."""
        return [self.tokenizer.apply_chat_template(_chat(row), tokenize=False) for row in rows]

    def scores(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Scores in the order of the model's labels, float64 [B, A]."""
        found = self.pipe(list(texts), batch_size=batch_size, function_to_apply="none", top_k=None, **self.limits)
        by_name = [{label["label"]: label["score"] for label in labels} for labels in found]
        return np.array([[labels[name] for name in self.names] for labels in by_name])


def _chat(row: Conversation) -> list[dict[str, str]]:
    system = [{"role": "system", "content": row.system}] if row.system else []
    return [*system, *({"role": m.role, "content": m.content} for m in row.messages)]
