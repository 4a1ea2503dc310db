"""The KV cache: rows join and leave, columns are realigned, and no row's values are lost or mixed with another's."""

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache
from transformers.integrations import sdpa_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from actors.generation import kv_cache as kv_cache_module
from actors.generation.kv_budget import KVBudget
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


def _grouped(rows: int, heads: int, kv_heads: int, columns: int, device: str) -> tuple[torch.Tensor, ...]:
    query = torch.randn(rows, heads, 1, 8, device=device)
    key, value = (torch.randn(rows, kv_heads, columns, 8, device=device) for _ in range(2))
    first = torch.arange(rows, device=device).view(rows, 1, 1, 1)
    mask = torch.arange(columns, device=device).view(1, 1, 1, columns) >= first
    return query, key, value, mask


def _spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The repetitions of heads that transformers' attention was asked for."""
    repeated: list[int] = []

    def spy(hidden: torch.Tensor, times: int) -> torch.Tensor:
        repeated.append(times)
        return hidden.repeat_interleave(times, dim=1)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", spy)
    return repeated


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_decoding_step_repeats_no_heads(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, by tensors that have a device and no memory: a masked step went to transformers' attention."""
    repeated = _spied(monkeypatch)
    module = torch.nn.Module()
    module.num_key_value_groups = 4  # type: ignore[assignment]
    with FakeTensorMode():
        query, key, value, mask = _grouped(3, 8, 2, 11, device)
        found, _ = decode(module, query, key, value, mask)
        assert found.shape == (3, 1, 8, 8)
        assert found.device.type == device
    assert repeated == []
    with FakeTensorMode():
        sdpa_attention_forward(module, *_grouped(3, 8, 2, 11, device))
    assert repeated == [4, 4], "the spy sees what it should"


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_the_fused_step_is_the_plain_one(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, run on a CPU."""
    torch.manual_seed(0)
    query, key, value, mask = _grouped(3, 8, kv_heads, 11, "cpu")
    for given in (mask, None):
        plain, _ = decode(torch.nn.Module(), query, key, value, given, scaling=0.3)
        monkeypatch.setattr(kv_cache_module, "fused", lambda device: True)
        fused, _ = decode(torch.nn.Module(), query, key, value, given, scaling=0.3)
        monkeypatch.undo()
        torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-5)


def test_a_long_prompt_beside_many_rows_stays_in_the_memory_given() -> None:
    """Llama 3.1 8B in bf16 on tensors without memory: 64 rows as long as one prompt of 4,096 tokens were 34 GiB."""
    layer = torch.empty(1, 8, 4096, 128, dtype=torch.bfloat16, device="meta")
    prefilled = DynamicCache()
    for number in range(32):
        prefilled.update(layer, layer, number)
    budget = KVBudget(8 * 2**30, 32 * 2 * 8 * 128 * 2, "kv_cache_gib")
    kv_cache = KVCache(64, budget.cells)
    assert kv_cache.fits([4200] * 14)
    assert not kv_cache.fits([4200] * 15)
    for number in range(14):
        kv_cache.join(prefilled, 4096)
        kv_cache.num_rows = number + 1
    held = sum(tensor.nbytes for layer in kv_cache.layers for tensor in (layer.keys, layer.values))
    assert 0.9 * budget.total_bytes < held <= budget.total_bytes


def test_a_long_life_in_the_memory_given() -> None:
    """As an engine uses it: who does not fit to the end waits; rows widen and narrow, and nothing is mixed."""
    draw, kv_cache, number = random.Random(1), KVCache(6, 6 * (FREE_COLUMNS + 120)), 0
    rows: list[list[int]] = []
    ends: list[int] = []
    waited = most = 0
    for _ in range(8 * FREE_COLUMNS):
        if len(rows) < 6 and draw.random() < 0.2:
            length = draw.choice([5, 40, 700])
            end = length + draw.randint(5, 80)
            if kv_cache.fits([*ends, end]):
                rows.append([number + i for i in range(length)])
                ends.append(end)
                kv_cache.join(prompt(rows[-1]), length)
                number += length
            else:
                waited += 1
        if rows:
            new = [number + i for i in range(len(rows))]
            number += len(rows)
            for row, token in zip(rows, new, strict=True):
                row.append(token)
            assert step(kv_cache, new) == rows
            most = max(most, len(rows))
            shape = kv_cache.layers[0].keys.shape
            assert shape[0] * shape[2] == kv_cache.num_cells <= 6 * (FREE_COLUMNS + 120)
        over = [i for i in range(len(rows)) if len(rows[i]) == ends[i]]
        if over:
            order = kv_cache.leave(over)
            rows, ends = [rows[i] for i in order], [ends[i] for i in order]
        number %= 10**6
    assert waited > 5
    assert most == 6
