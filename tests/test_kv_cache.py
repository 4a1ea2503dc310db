"""The KV cache: rows join and leave, columns are realigned, and no row's values are lost or mixed with another's."""

import random

import pytest
import torch
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from actors.generation.kv_cache import FREE_COLUMNS, KVCache, decode

HEADS, WIDTH = 2, 4


def prompt(ids: list[int]) -> DynamicCache:
    """Keys and values that say which token they are of."""
    cache = DynamicCache()
    for layer in range(2):
        keys = torch.tensor(ids, dtype=torch.float32).view(1, 1, -1, 1).expand(1, HEADS, -1, WIDTH) + 1000 * layer
        cache.update(keys.contiguous(), -keys.contiguous(), layer)
    return cache


def step(kv_cache: KVCache, ids: list[int]) -> list[list[int]]:
    """Write one token for each row; what each row then sees, by the mask."""
    mask_BL = kv_cache.begin_step()
    seen: list[list[int]] = []
    for number, layer in enumerate(kv_cache.layers):
        new = torch.tensor(ids, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, HEADS, 1, WIDTH) + 1000 * number
        keys, values = layer.update(new, -new)
        assert torch.equal(keys, -values)
        assert keys.shape[2] == mask_BL.shape[1]
        seen = [(keys[row, 1, mask, 3] - 1000 * number).int().tolist() for row, mask in enumerate(mask_BL)]
    kv_cache.end_step()
    return seen


def test_rows_of_different_length_see_their_own_tokens() -> None:
    kv_cache = KVCache(3)
    kv_cache.join(prompt([1, 2, 3]), 3)
    assert step(kv_cache, [4]) == [[1, 2, 3, 4]]
    kv_cache.join(prompt([10, 11, 12, 13, 14, 15, 16]), 7)  # longer than what is there
    kv_cache.join(prompt([20]), 1)
    assert step(kv_cache, [5, 17, 21]) == [[1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15, 16, 17], [20, 21]]
    assert kv_cache.leave([0]) == [2, 1]
    assert step(kv_cache, [22, 18]) == [[20, 21, 22], [10, 11, 12, 13, 14, 15, 16, 17, 18]]
    assert kv_cache.leave([1]) == [0]
    assert kv_cache.end - kv_cache.first == 3, "columns that only the longer one used are no longer looked at"


def test_a_long_life_in_bounded_memory() -> None:
    """As an engine uses it, against lists."""
    draw, kv_cache, rows, number = random.Random(0), KVCache(5), [], 0
    widest = 0
    for _ in range(6 * FREE_COLUMNS):
        if len(rows) < 5 and draw.random() < 0.1:
            length = draw.randint(1, 60)
            rows.append([number + i for i in range(length)])
            kv_cache.join(prompt(rows[-1]), length)
            number += length
        if rows:
            new = [number + i for i in range(len(rows))]
            number += len(rows)
            for row, token in zip(rows, new, strict=True):
                row.append(token)
            assert step(kv_cache, new) == rows
        over = [i for i in range(len(rows)) if len(rows[i]) > 90 or draw.random() < 0.01]
        if over:
            rows = [rows[i] for i in kv_cache.leave(over)]
        widest = max(widest, kv_cache.num_columns)
        number %= 10**6
    assert widest <= 2 * FREE_COLUMNS, "the longest row and its free columns, not the sum of all"


def test_the_last_row_leaves_nothing_behind() -> None:
    kv_cache = KVCache(2)
    kv_cache.join(prompt([1, 2]), 2)
    assert kv_cache.leave([0]) == []
    assert (kv_cache.layers, kv_cache.num_columns) == ([], 0)
    kv_cache.join(prompt([7]), 1)
    assert step(kv_cache, [8]) == [[7, 8]]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_decoding_is_transformers_attention(kv_heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 1, 8), torch.randn(3, kv_heads, 11, 8), torch.randn(3, kv_heads, 11, 8)
    mask = torch.arange(11)[None, None, None] >= torch.tensor([0, 4, 10]).view(3, 1, 1, 1) if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups = 4 // kv_heads  # type: ignore[assignment]
    ours, _ = decode(module, query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    if masked:
        added = torch.zeros(mask.shape).masked_fill(~mask, -1e30)
        torch.testing.assert_close(decode(module, query, key, value, added, scaling=0.3)[0], ours, atol=1e-6, rtol=1e-5)
