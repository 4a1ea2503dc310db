"""What a process needs beside the weights, by the published figures of a model."""

from support.llama_shapes import LLAMA_8B
from transformers import AutoConfig

from actors.modeling.model_memory import cache_bytes, forward_bytes
from actors.modeling.model_shape import shape_of


def test_a_cache_holds_the_grouped_heads_alone() -> None:
    llama = shape_of(AutoConfig.for_model("llama", **LLAMA_8B))
    # 128 KiB a token in bf16, as published for Llama 3.1 8B; its whole context is 16 GiB.
    assert cache_bytes(llama, 1, 131_072, 2) == 16 * 2**30
    assert forward_bytes(llama, 32_768, 2) < 5 * 2**30
