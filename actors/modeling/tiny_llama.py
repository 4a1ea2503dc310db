"""A small randomly initialized Llama and its tokenizer, for machines without pretrained weights. Knows no training."""

from collections.abc import Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.modeling.tokenizer import train_tokenizer
from data.record import Record


class SmallModel(Record):
    """The shape of a small Llama."""

    hidden_size: int = 128
    """Width."""
    num_layers: int = 4
    """Decoder layers."""
    num_heads: int = 4
    """Attention heads."""
    num_kv_heads: int = 2
    """Key and value heads."""
    intermediate_size: int = 344
    """Width of the feed-forward part."""
    vocab_size: int = 1024
    """Entries of the byte-level BPE tokenizer trained on the texts; a small corpus may need fewer."""
    max_tokens: int = 1024
    """Longest context."""

    @property
    def num_parameters(self) -> int:
        """Weights of the model, embeddings counted once (they are tied)."""
        head = self.hidden_size // self.num_heads
        attention = 2 * self.hidden_size**2 + 2 * self.hidden_size * head * self.num_kv_heads
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size


def make_small_model(small: SmallModel, texts: Iterable[str], seed: int, folder: str) -> dict[str, int]:
    """Train the tokenizer on `texts`, initialize the weights, save both in `folder`; returns their sizes."""
    tokenizer = train_tokenizer(texts, small.vocab_size)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=small.hidden_size,
            num_hidden_layers=small.num_layers,
            num_attention_heads=small.num_heads,
            num_key_value_heads=small.num_kv_heads,
            intermediate_size=small.intermediate_size,
            max_position_embeddings=small.max_tokens,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"num_parameters": model.num_parameters(), "vocab_size": len(tokenizer)}
