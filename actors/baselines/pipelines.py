"""Baselines of scoring and sampling: transformers' own pipeline and `generate`, as documented. For benches only."""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from data.conversation import Conversation
from data.examples import Example
from data.prompts import Prompt


class PipelineScorer:
    """`pipeline("text-classification")` on a predictor folder. Scores the last answer of a conversation."""

    def __init__(self, folder: str, max_tokens: int):
        """`max_tokens`: longer conversations keep their end, as in our annotator."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side="left", trust_remote_code=False)
        self.pipe = pipeline(
            "text-classification",
            model=folder,
            tokenizer=self.tokenizer,
            device="cpu",
            dtype=torch.float32,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self.names = [self.pipe.model.config.id2label[i] for i in range(self.pipe.model.config.num_labels)]
        self.limits = {"truncation": True, "max_length": max_tokens, "padding": True}

    def texts(self, rows: Sequence[Conversation]) -> list[str]:
        """The conversations as the saved chat template writes them: the text that our predictor reads."""
        return [self.tokenizer.apply_chat_template(_chat(row), tokenize=False) for row in rows]

    def scores(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Scores in the order of the model's labels, float64 [B, A]."""
        found = self.pipe(list(texts), batch_size=batch_size, function_to_apply="none", top_k=None, **self.limits)
        by_name = [{label["label"]: label["score"] for label in labels} for labels in found]
        return np.array([[labels[name] for name in self.names] for labels in by_name])


class GenerateSampler:
    """`generate` on a policy folder: prompts by the chat template, padded on the left."""

    def __init__(self, folder: str, attributes: Mapping[str, float]):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
        self.model: Any = _causal_lm(folder)
        self.attributes = dict(attributes)

    def ids(self, prompt: Prompt) -> list[int]:
        chat = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = self.tokenizer.apply_chat_template(
            chat, tokenize=False, attributes=self.attributes, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def sampled(
        self, prompts: Sequence[Prompt], batch_size: int, max_tokens: int, seed: int, temperature: float, top_k: int
    ) -> tuple[float, float]:
        """Tokens of all answers, and CPU seconds on one thread. Each batch runs until its longest answer ends."""
        torch.manual_seed(seed)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        started, tokens = time.process_time(), 0
        options = {"max_new_tokens": max_tokens, "do_sample": True, "temperature": temperature, "top_k": top_k}
        for start in range(0, len(prompts), batch_size):
            tokens += sum(map(len, self._generate(prompts[start : start + batch_size], **options)))
        seconds = time.process_time() - started
        torch.set_num_threads(threads)
        return tokens, round(seconds, 3)

    def greedy(self, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        """The text of the most likely answer to each prompt."""
        answers = [self._generate([p], max_new_tokens=max_tokens, do_sample=False)[0] for p in prompts]
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return [self.tokenizer.decode(ids, **options).strip() for ids in answers]

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Prompt], **options: Any) -> list[list[int]]:
        """The new ids of each answer, without the one that ends it."""
        batch = self.tokenizer.pad({"input_ids": [self.ids(p) for p in prompts]}, return_tensors="pt")
        ends = set(self.model.generation_config.eos_token_id)
        new_BT = self.model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        return [list(itertools.takewhile(lambda i: i not in ends, ids)) for ids in new_BT.tolist()]


def _chat(row: Conversation) -> list[dict[str, str]]:
    system = [{"role": "system", "content": row.system}] if row.system else []
    return [*system, *({"role": m.role, "content": m.content} for m in row.messages)]


def _causal_lm(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()


@torch.inference_mode()
def mean_loss(folder: str, examples: Iterable[Example]) -> float:
    """Mean loss of the trained tokens of all examples, in nats, in fp32: one forward each, no packing, no padding."""
    model = _causal_lm(folder)
    total, targets = 0.0, 0
    for example in examples:
        ids_T = torch.tensor(np.asarray(example.ids_T), dtype=torch.int64)
        labels_T = torch.where(torch.tensor(np.asarray(example.trained_T)), ids_T, -100)
        logits_TV = model(ids_T[None], use_cache=False).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits_TV, labels_T[1:], reduction="sum"))
        targets += int((labels_T[1:] != -100).sum())
    return total / targets
