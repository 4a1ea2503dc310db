"""Tiny random causal language models of many families: four layers each, windows of 8 tokens."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

VOCABULARY = 300
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZE | {"num_key_value_heads": 2, "head_dim": 8}
SLIDING = GROUPED | {"sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = GROUPED | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT = SIZE | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
OLD = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": VOCABULARY}

EXACT = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": SLIDING,
    "ministral": SLIDING,
    "gemma": GROUPED,
    "gemma2": SLIDING | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0},
    "gemma3_text": SLIDING | {"query_pre_attn_scalar": 8},
    "gpt_oss": SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": SIZE,
    "phi3": GROUPED,
    "gpt_neox": SIZE,
    "gpt2": OLD | {"n_positions": 256},
    "opt": SIZE | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "olmo2": GROUPED,
    "glm4": GROUPED,
    "starcoder2": SLIDING,
    "smollm3": GROUPED,
    "granite": GROUPED,
    "cohere": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": GROUPED | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_moe": GROUPED | EXPERTS | {"num_experts": 4},
    "deepseek_v3": LATENT | EXPERTS,
}
"""Packed, they give what they give one by one."""

MIXING = {
    "nemotron": GROUPED,
    "qwen3_next": LINEAR | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": LINEAR,
    "llama4_text": GROUPED | {"num_local_experts": 4, "intermediate_size_mlp": 64, "attention_chunk_size": 8},
    "bloom": OLD | {"hidden_size": 32},
    "falcon": SIZE,
    "gptj": OLD | {"n_positions": 256, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "vocab_size": VOCABULARY, "max_seq_len": 256},
}
"""Packed, they do not, or do not run at all."""

FAMILIES = EXACT | MIXING


def config_of(family: str) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.for_model(family, **FAMILIES[family])
    return config


def tiny_model(family: str, attention: str) -> PreTrainedModel:
    """The same weights at every call, so large that a neighbor, a cap or a sink shows in the logits."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(family), attn_implementation=attention)
    draw(model)
    return model.eval()


def draw(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        mean = 0.3 if parameter.dim() == 1 else 0.0
        with torch.no_grad():
            parameter.normal_(mean, 0.15, generator=generator)


def save_family(family: str, folder: str, tokenizer_of: str) -> str:
    """A model folder with the tokenizer of another one; returns `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    model = AutoModelForCausalLM.from_config(config_of(family))
    draw(model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
