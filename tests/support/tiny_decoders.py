"""Tiny random decoders of several families, with the tokenizer of another folder, saved as a hub folder would be."""

import torch
from transformers import (
    AutoTokenizer,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.support.tiny_backbones import draw_weights

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 20}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 8, "sliding_window": 20, "sliding_window_pattern": 2}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 4.0}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "cohere2": (Cohere2ForCausalLM, Cohere2Config, {"logit_scale": 0.25}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {"head_dim": 8, **EXPERTS}),
    "phi": (PhiForCausalLM, PhiConfig, {}),
}


def decoder(family: str, vocab_size: int) -> torch.nn.Module:
    """A random model of `family`, the same at every call."""
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=512, n_embd=32, n_layer=2, n_head=4))
    else:
        model_class, config, more = FAMILIES[family]
        model = model_class(config(vocab_size=vocab_size, **SHAPE, **more))
    draw_weights(model)
    return model


def save_decoder(family: str, base: str, folder: str, vocab_size: int = 0) -> str:
    """A random model of `family` with the tokenizer at `base`; returns `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    decoder(family, vocab_size or len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
