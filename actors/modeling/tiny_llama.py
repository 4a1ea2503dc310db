"""A small randomly initialized Llama and its tokenizer, for machines without pretrained weights. Knows no training."""

from collections.abc import Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.modeling.settings import SmallModel
from actors.modeling.tokenizer import train_tokenizer


def small_config(small: SmallModel, **others: int) -> LlamaConfig:
    """The config of `small`; `others` are entries that its tokenizer decides, or that differ from a small model's."""
    return LlamaConfig(
        **{"vocab_size": small.vocab_size, "tie_word_embeddings": True, **others},
        hidden_size=small.hidden_size,
        num_hidden_layers=small.num_layers,
        num_attention_heads=small.num_heads,
        num_key_value_heads=small.num_kv_heads,
        intermediate_size=small.intermediate_size,
        max_position_embeddings=small.max_tokens,
        bos_token_id=None,
    )


def make_small_model(small: SmallModel, texts: Iterable[str], seed: int, folder: str) -> dict[str, int]:
    """Train the tokenizer on `texts`, initialize the weights, save both in `folder`; returns their sizes."""
    tokenizer = train_tokenizer(texts, small.vocab_size)
    torch.manual_seed(seed)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(small_config(small, vocab_size=len(tokenizer), **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"num_parameters": model.num_parameters(), "vocab_size": len(tokenizer)}
