import pytest
import torch
from transformers import DynamicCache

from actors.generation.prefix_cache import PrefixCache


def cache_of(ids: list[int]) -> DynamicCache:
    """Keys and values that say which token they belong to."""
    cache = DynamicCache()
    values = torch.tensor(ids, dtype=torch.float32).view(1, 1, -1, 1)
    for layer in range(2):
        cache.update(values + layer, -values, layer)
    return cache


def kept(cache: DynamicCache) -> list[float]:
    return cache.layers[1].keys.flatten().tolist() if len(cache.layers) else []


def test_the_longest_common_beginning_is_reused_but_never_the_last_token() -> None:
    prefix_cache = PrefixCache(100)
    assert prefix_cache.start([1, 2, 3])[0] == 0
    prefix_cache.keep([1, 2, 3, 4], cache_of([1, 2, 3, 4]))
    prefix_cache.keep([1, 2, 9, 9, 9], cache_of([1, 2, 9, 9, 9]))
    known, cache = prefix_cache.start([1, 2, 3, 7])
    assert (known, kept(cache)) == (3, [2, 3, 4])
    known, cache = prefix_cache.start([1, 2, 3, 4])
    assert (known, kept(cache)) == (3, [2, 3, 4])
    assert prefix_cache.start([5, 1, 2, 3])[0] == 0


def test_a_prompt_that_begins_another_is_kept_once() -> None:
    prefix_cache = PrefixCache(100)
    prefix_cache.keep([1, 2], cache_of([1, 2]))
    prefix_cache.keep([1, 2, 3], cache_of([1, 2, 3]))
    prefix_cache.keep([1, 2, 3], cache_of([1, 2, 3]))
    assert prefix_cache.num_tokens == 3


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    prefix_cache = PrefixCache(6)
    prefix_cache.keep([1, 1, 1], cache_of([1, 1, 1]))
    prefix_cache.keep([2, 2, 2], cache_of([2, 2, 2]))
    prefix_cache.start([1, 1, 5])
    prefix_cache.keep([3, 3, 3], cache_of([3, 3, 3]))
    assert prefix_cache.num_tokens == 6
    assert [prefix_cache.start([i, i, i, 0])[0] for i in (1, 2, 3)] == [3, 0, 3]
    prefix_cache.keep([4] * 7, cache_of([4] * 7))
    assert prefix_cache.num_tokens == 6


def test_what_is_reused_is_not_what_is_kept() -> None:
    prefix_cache = PrefixCache(10)
    prefix_cache.keep([1, 2, 3], cache_of([1, 2, 3]))
    _, cache = prefix_cache.start([1, 2, 4])
    cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 1)
    assert kept(prefix_cache.start([1, 2, 3, 4])[1]) == [2, 3, 4]


@pytest.mark.case("B13: a team cannot time what another has sent")
def test_prompts_of_different_salts_share_nothing() -> None:
    prefix_cache = PrefixCache(100)
    prefix_cache.keep([1, 2, 3], cache_of([1, 2, 3]), "games")
    assert [prefix_cache.start([1, 2, 3, 4], salt)[0] for salt in ("games", "school", "")] == [3, 0, 0]
    prefix_cache.keep([1, 2, 3, 4], cache_of([1, 2, 3, 4]), "school")
    prefix_cache.keep([1, 2, 3], cache_of([1, 2, 3]), "")
    assert [prefix_cache.start([1, 2, 3, 4, 5], salt)[0] for salt in ("games", "school", "")] == [3, 4, 3]
    assert prefix_cache.num_tokens == 10
