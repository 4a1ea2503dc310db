"""The transformers engine writes what plain transformers writes, for every family that it takes, also past windows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_families import FAMILIES, VOCABULARY, config_of, tiny_model

from actors.generation import cache_check
from actors.generation.protocol import Sampling, complete
from actors.generation.transformers_engine import TransformersEngine
from actors.modeling.isolation import causal_lm_attention
from data.errors import UserError

REFUSED = {"qwen3_next", "qwen3_5_text", "llama4_text"}
PROMPTS, NEW = (5, 19), 12


@pytest.fixture(autouse=True)
def _nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_check, "_passed", set())


def _engine(family: str) -> TransformersEngine:
    attention = causal_lm_attention(config_of(family), packing=False)
    policy: Any = SimpleNamespace(model=tiny_model(family, attention))
    policy.stop_ids, policy.max_tokens = frozenset(), 200
    return TransformersEngine(policy, max_num_seqs=2)


def _greedy(family: str, prompt: list[int]) -> list[int]:
    """By transformers' own plain attention, without a cache."""
    model, ids = tiny_model(family, "eager"), list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - REFUSED))
def test_two_prompts_at_a_time_are_answered_as_each_alone_without_a_cache(family: str) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, VOCABULARY, length).tolist() for length in PROMPTS]
    engine = _engine(family)
    answers = complete(engine, [(prompt, Sampling(NEW, temperature=0.0)) for prompt in prompts])
    engine.close()
    assert [ids for ids, _ in answers] == [_greedy(family, prompt) for prompt in prompts]


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_model_with_another_state_is_refused_when_it_is_loaded(family: str) -> None:
    sentence = rf"^the transformers engine cannot run a model of type {family}: .*; name a model whose layers keep keys"
    with pytest.raises(UserError, match=sentence):
        _engine(family)


def test_a_cache_that_changes_the_logits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rows were aligned by one token too few."""
    from actors.generation.kv_cache import KVCache

    join = KVCache.join
    monkeypatch.setattr(KVCache, "join", lambda self, prefilled, length: join(self, _cut(prefilled), length - 1))
    with pytest.raises(UserError, match=r"with a KV cache its logits are off by \d+\.\d+%"):
        _engine("llama")


def _cut(prefilled: Any) -> Any:
    for layer in prefilled.layers:
        layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
    return prefilled
