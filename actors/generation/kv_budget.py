"""How many tokens the KV cache of an engine may hold, from the memory that is there. Knows no requests."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from actors.generation.kv_cache import FREE_COLUMNS
from actors.kernels.machine_memory import ALONE, MachineShare
from data.errors import UserError

GIB = 2**30
FREE_SHARE = 0.7
"""Of an accelerator's free memory, once the weights are there: the rest is for prompts and for moving rows."""
HOST_SHARE = 0.5
"""Of what the process may use of its machine's memory, on a CPU."""
LEAST = 16
"""Tokens of prompt and answer below which an engine is of no use."""


@dataclass(frozen=True)
class KVBudget:
    """The memory of a KV cache."""

    total_bytes: int
    bytes_per_token: int
    chosen: str
    """Where the number of bytes comes from."""

    @classmethod
    def of(cls, model: PreTrainedModel, kv_cache_gib: float | None, share: MachineShare) -> "KVBudget":
        """`kv_cache_gib`: None = a part of what `model`'s device has left, on a CPU of the process's `share`.

        Raises UserError if that is too little.
        """
        total, chosen = int((kv_cache_gib or 0) * GIB), "kv_cache_gib"
        if kv_cache_gib is None:
            total, chosen = _default(model.device, share)
        budget = cls(total, bytes_per_token(model), chosen)
        if budget.context < LEAST:
            raise UserError(
                f"the KV cache has {total / GIB:.2f} GiB ({chosen}), and a token of this model takes "
                f"{budget.bytes_per_token:,} bytes: that is no room for one answer; raise kv_cache_gib, or use a "
                "device with more memory"
            )
        return budget

    @property
    def cells(self) -> int:
        """Most rows times columns of the cache."""
        return self.total_bytes // self.bytes_per_token

    @property
    def context(self) -> int:
        """Most tokens of one request, prompt and answer together."""
        return self.cells - FREE_COLUMNS

    @property
    def guided_context(self) -> int:
        """Most tokens of one request that keeps two rows."""
        return self.cells // 2 - FREE_COLUMNS

    def __str__(self) -> str:
        return f"{self.total_bytes / GIB:.2f} GiB of KV cache ({self.chosen}) at {self.bytes_per_token:,} bytes a token"


@torch.inference_mode()
def bytes_per_token(model: PreTrainedModel) -> int:
    """Keys and values of one token in all layers, measured: a configuration does not tell how a model caches them."""
    cache = DynamicCache()
    ids_11 = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(input_ids=ids_11, position_ids=ids_11, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))


def _default(device: torch.device, share: MachineShare) -> tuple[int, str]:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return int(free * FREE_SHARE), f"{FREE_SHARE:.0%} of what {device} has free"
    whose = "the memory" if share == ALONE else "this process's share of the memory"
    return int(share.num_bytes() * HOST_SHARE), f"{HOST_SHARE:.0%} of {whose}"
