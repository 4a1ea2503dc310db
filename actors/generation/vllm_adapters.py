"""Adapters in vLLM: what its engine is started with for them, and what names one in a request. Knows no requests.

vLLM reads the folders of `jobs.export what=adapter` as peft's: `adapter_config.json` and `adapter_model.safetensors`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from actors.modeling.adapter_weights import adapter_weights
from actors.modeling.base_weights import fingerprint
from actors.modeling.policy import PolicyText, load_causal_lm
from data.errors import UserError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM sets memory aside for."""


def arguments(ranks: Sequence[int]) -> dict[str, Any]:
    """Of vLLM's EngineArgs, for adapters of these ranks; raises UserError for one that vLLM does not take.

    One place more than adapters, so that a new version of one is loaded beside the old one.
    """
    if not ranks:
        return {}
    if max(ranks) > RANKS[-1]:
        raise UserError(
            f"an adapter has rank {max(ranks)}, and vLLM takes {RANKS[-1]} at most: export it with rank={RANKS[-1]}, "
            "or set engine.kind to transformers"
        )
    rank = next(allowed for allowed in RANKS if allowed >= max(ranks))
    return {"enable_lora": True, "max_loras": len(ranks) + 1, "max_lora_rank": rank}


class VllmAdapters:
    """Of one engine."""

    def __init__(self, text: PolicyText, folder: str, num_places: int):
        """`folder`: of the policy, on this machine; `num_places`: for adapters, that the engine was started with."""
        self._text, self._folder, self._num_places = text, folder, num_places
        self._numbers = itertools.count(1)

    def request(self, name: str, folder: str) -> Any:
        """vLLM's LoRARequest for the adapter in a local folder, with a name and a number that no other has: vLLM keeps
        weights by the one, and the prefix cache by the other.

        Raises UserError if it was trained on other weights, or on what vLLM does not take.
        """
        if not self._num_places:
            raise UserError(
                f"adapter {name}: vLLM was started without room for adapters; set adapters in the settings of the "
                "endpoint, and start it again"
            )
        model = load_causal_lm(self._folder, self._text.format, "eager", torch.bfloat16)  # vLLM shows no weights
        weights = adapter_weights(name, folder, model, fingerprint(model))
        if weights.inputs_ED is not None or weights.outputs_ED is not None:
            raise UserError(
                f"adapter {name} has embeddings of its own for tokens that its base lacked, and vLLM takes none: set "
                "engine.kind to transformers, or serve it alone (policy=FOLDER)"
            )
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        return LoRARequest(lora_name=f"{name}-{number}", lora_int_id=number, lora_path=folder)
