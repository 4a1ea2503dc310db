"""A tiny chat model with random weights and tied embeddings, whose vocabulary lacks our control tokens."""

import tokenizers
from support.chat_templates import SHAPES
from support.tiny_backbones import draw_weights
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = ["Tell me about bees. They dance and guard ships; so it is, 1. 2. 3.", "Answer briefly. Be kind and polite."]


def chat_base(folder: str, hidden_size: int = 32) -> str:
    """Save it in `folder`, as a folder of the hub would be."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special, alphabet = ["<pad>", "<|im_start|>", "<|im_end|>"], tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = SHAPES["chatml"][0]
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": hidden_size, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 64, "max_position_embeddings": 2048}
    model = LlamaForCausalLM(LlamaConfig(**shape, **ends, **sizes, tie_word_embeddings=True))
    draw_weights(model)
    model.save_pretrained(folder)
    return folder
