"""A small randomly initialized Llama and its tokenizer, for machines without pretrained weights. Knows no training."""

from collections.abc import Iterable

import torch
from pydantic import model_validator
from transformers import LlamaConfig, LlamaForCausalLM

from actors.modeling.tokenizer import train_tokenizer
from data.bounds import Times, TokenBudget, Vocabulary, Width
from data.errors import UserError
from data.record import Record


class SmallModel(Record):
    """The shape of a small Llama."""

    hidden_size: Width = 128
    """Width."""
    num_layers: Times = 4
    """Decoder layers."""
    num_heads: Width = 4
    """Attention heads."""
    num_kv_heads: Width = 2
    """Key and value heads."""
    intermediate_size: Width = 344
    """Width of the feed-forward part."""
    vocab_size: Vocabulary = 1024
    """Entries of the byte-level BPE tokenizer trained on the texts; a small corpus may need fewer."""
    max_tokens: TokenBudget = 1024
    """Longest context."""

    @model_validator(mode="after")
    def _heads(self) -> "SmallModel":
        width = self.hidden_size // self.num_heads
        if self.hidden_size % self.num_heads or width % 2:
            raise UserError(
                f"hidden_size {self.hidden_size} does not give each of num_heads {self.num_heads} an even width "
                "(rotary positions turn pairs of numbers); set hidden_size to a multiple of 2 x num_heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}: heads share keys and "
                "values in groups of one size; set num_kv_heads to a divisor of num_heads"
            )
        return self


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
