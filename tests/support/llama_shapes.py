"""Entries of published configs that decide the sizes of a Llama."""

LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
}
"""Llama 3.1 8B's."""
SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M's."""
LLAMA_13B = {
    "vocab_size": 32_000,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13_824,
    "max_position_embeddings": 4096,
}
"""Llama 2 13B's."""
LLAMA_70B = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28_672,
    "max_position_embeddings": 131_072,
}
"""Llama 3.1 70B's."""
PAPER_43B = {
    "vocab_size": 256_000,
    "hidden_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "intermediate_size": 22_016,
    "max_position_embeddings": 4096,
}
"""Of the size of the paper's 43 B; its own config is not public."""
LLAMA_405B = {
    "vocab_size": 128_256,
    "hidden_size": 16_384,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53_248,
    "max_position_embeddings": 131_072,
}
"""Llama 3.1 405B's."""
