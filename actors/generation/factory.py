"""Make the engine of a policy by its kind. Knows nothing of how engines work."""

from typing import Literal

from actors.generation.protocol import Engine
from actors.kernels.devices import own_device
from actors.kernels.precision import usable_dtype
from actors.modeling.model_folder import local_folder
from actors.modeling.policy import Policy, PolicyText

EngineKind = Literal["transformers", "vllm"]


def load_engine(
    kind: EngineKind,
    policy: str,
    dtype: str,
    max_num_seqs: int,
    prefix_cache_tokens: int,
    memory_share: float,
    max_context: int | None = None,
    kv_cache_gib: float | None = None,
) -> tuple[PolicyText, Engine]:
    """The policy at a folder or URI and an engine that runs it; raises UserError if there is no such policy or engine.

    `prefix_cache_tokens` bounds the prompts that the transformers engine keeps; `memory_share` is vLLM's of a GPU;
    `max_context` bounds prompt and answer together, where the model's own context is longer; `kv_cache_gib` is the
    memory of the transformers engine's KV cache. The engine runs on this process's own device.
    """
    dtype = usable_dtype(dtype, own_device(), "engine.dtype")
    if kind == "vllm":
        from actors.generation.vllm_engine import VllmEngine

        text = PolicyText.load(policy)
        return text, VllmEngine(text, local_folder(policy), dtype, max_num_seqs, memory_share, max_context)
    from actors.generation.transformers_engine import TransformersEngine

    loaded = Policy.load(policy, dtype)
    return loaded, TransformersEngine(loaded, max_num_seqs, prefix_cache_tokens, max_context, kv_cache_gib)
