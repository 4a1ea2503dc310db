"""A tiny policy with random weights whose prompt format is a model's own chat template."""

from pathlib import Path

import tokenizers
from support.chat_templates import SHAPES
from transformers import AutoTokenizer

from actors.modeling.policy import PolicyTask
from actors.modeling.settings import SmallModel
from actors.modeling.tiny_llama import make_small_model
from data.attributes import shipped
from data.lab import Lab, LabSettings


def chat_policy(shape: str, folder: Path, max_tokens: int = 8192) -> str:
    """The folder of a policy with the template `shape` and schema `lab`, saved as training saves it."""
    base, saved = str(folder / "base"), str(folder / "model")
    texts = [m.content for row in Lab(LabSettings(num_rows=200)).rows() for m in row.messages]
    small = SmallModel(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=600,
        max_tokens=max_tokens,
    )  # fmt: skip
    make_small_model(small, texts, 0, base)
    template, own = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in own], special_tokens=True)
    tokenizer.eos_token, tokenizer.chat_template = own[-1], template
    tokenizer.save_pretrained(base)
    task = PolicyTask(base, shipped("lab"), "chat")
    module = task.build()
    task.save(module, module.state_dict(), saved)
    return saved
