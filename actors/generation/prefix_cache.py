"""Keys and values of recent prompts: a prompt that begins like one runs only its other tokens through the model.

The same question at five settings shares everything up to the label line; the next turn shares the conversation so far.
Knows no engine and no text.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, [1, heads, T, head] each."""


@dataclass(frozen=True)
class _Prompt:
    salt: str
    ids_T: np.ndarray
    layers: Layers


class PrefixCache:
    """At most `max_tokens` tokens of prompts; removes the least recently used first; 0 = keeps nothing.

    Prompts of different salts share nothing, so that nobody can time what others have sent.
    """

    def __init__(self, max_tokens: int):
        self._max_tokens = max_tokens
        self._prompts: OrderedDict[tuple[str, bytes], _Prompt] = OrderedDict()
        self.num_tokens = 0
        """Tokens in the cache."""

    def start(self, ids: Sequence[int], salt: str = "") -> tuple[int, DynamicCache]:
        """(number of `ids` that are cached, a cache that holds them); never the last one, as its logits are needed."""
        cache = DynamicCache()
        ids_T = np.asarray(ids)
        best, shared = None, 0
        for key, prompt in self._prompts.items():
            common = _common(prompt.ids_T, ids_T[:-1]) if prompt.salt == salt else 0
            if common > shared:
                best, shared = key, common
        if best is not None:
            self._prompts.move_to_end(best)
            for layer, (keys, values) in enumerate(self._prompts[best].layers):
                cache.update(keys[:, :, :shared], values[:, :, :shared], layer)
        return shared, cache

    def keep(self, ids: Sequence[int], cache: DynamicCache, salt: str = "") -> None:
        """Add the prompt `ids`, whose keys and values are in `cache`; its tensors must not change later."""
        ids_T = np.asarray(ids, np.int64)
        if len(ids_T) > self._max_tokens:
            return
        # A prompt that is the beginning of this one is cached with it.
        own = [(key, prompt) for key, prompt in self._prompts.items() if prompt.salt == salt]
        for key in [key for key, prompt in own if _common(prompt.ids_T, ids_T) == len(prompt.ids_T)]:
            self._remove(key)
        self._prompts[salt, ids_T.tobytes()] = _Prompt(
            salt, ids_T, [(layer.keys, layer.values) for layer in cache.layers]
        )
        self.num_tokens += len(ids_T)
        while self.num_tokens > self._max_tokens:
            self._remove(next(iter(self._prompts)))

    def _remove(self, key: tuple[str, bytes]) -> None:
        self.num_tokens -= len(self._prompts.pop(key).ids_T)


def _common(one_T: np.ndarray, other_T: np.ndarray) -> int:
    """Number of tokens that both begin with."""
    length = min(len(one_T), len(other_T))
    different = np.flatnonzero(one_T[:length] != other_T[:length])
    return int(different[0]) if len(different) else length
