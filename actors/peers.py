"""What a user would do with transformers alone, as its documentation says. Benches measure and judge by it, nothing else uses it."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from data.conversation import Conversation
from data.examples import Example


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


@torch.inference_mode()
def mean_loss(folder: str, examples: Iterable[Example]) -> float:
    """Of the trained tokens of all examples, in nats, in fp32: a forward each, nothing packed and nothing padded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, targets = 0.0, 0
    for example in examples:
        ids_T = torch.tensor(np.asarray(example.ids_T), dtype=torch.int64)
        labels_T = torch.where(torch.tensor(np.asarray(example.trained_T)), ids_T, -100)
        logits_TV = model(ids_T[None], use_cache=False).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits_TV, labels_T[1:], reduction="sum"))
        targets += int((labels_T[1:] != -100).sum())
    return total / targets
