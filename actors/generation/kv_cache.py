"""A KV cache that is updated in place: a row for each running request, aligned at the right, with free columns.

transformers' own cache copies all keys and values for every token, and its attention repeats them for every query head;
for a small batch both cost more than the model's products. Rows are aligned at the right, so that distances between
columns are those between tokens, as sliding windows need them. Knows no engine and no sampling.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from actors.kernels.extra_arguments import Extras
from actors.kernels.masked import masked

DECODE = "decode"
FREE_COLUMNS = 256
"""Free columns at the right after rows are realigned: after so many tokens they are realigned again."""


def decode(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token per row, [B, heads, 1, d] on [B, kv_heads, L, d] -> [B, 1, heads, d], without copies.

    `masked` runs a prompt (several tokens), and what has a soft cap or sinks. Raises UserError for an argument that
    neither computes.
    """
    rows, heads, tokens, width = query.shape
    if tokens != 1 or Extras.of(module, kwargs):
        return masked(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    # The query heads of a group stand as tokens of one head: each reads its keys and values where they are.
    grouped_BKGd = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    if fused(query.device):
        # `enable_gqa` would not do: with a mask torch has it in the plain kernel only, which repeats the heads.
        found_BKGd = scaled_dot_product_attention(grouped_BKGd, key, value, attn_mask=attention_mask, scale=scaling)
        return found_BKGd.reshape(rows, 1, heads, value.shape[3]), None
    scores_BKGL = torch.matmul(grouped_BKGd, key.transpose(2, 3)) * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores_BKGL = scores_BKGL.masked_fill(~attention_mask, -torch.inf)
        else:
            scores_BKGL = scores_BKGL + attention_mask
    weights_BKGL = scores_BKGL.float().softmax(dim=-1).to(value.dtype)
    return torch.matmul(weights_BKGL, value).view(rows, 1, heads, value.shape[3]), None


def fused(device: torch.device) -> bool:
    """Has torch a fused kernel for a decoding step there? On a CPU two products are faster."""
    return device.type != "cpu"


AttentionInterface.register(DECODE, decode)
AttentionMaskInterface.register(DECODE, sdpa_mask)


class _Layer(CacheLayerMixin):
    """One layer's keys and values, [rows, kv_heads, columns, d]; only columns [first, end) of used rows are valid."""

    is_sliding = False

    def __init__(self, kv_cache: "KVCache"):
        super().__init__()
        self._kv_cache = kv_cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("a prompt is prefilled in a cache of its own")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, first, end = self._kv_cache.num_rows, self._kv_cache.first, self._kv_cache.end
        assert self.keys is not None
        assert self.values is not None
        self.keys[:rows, :, end] = key_states[:, :, 0]
        self.values[:rows, :, end] = value_states[:, :, 0]
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def get_seq_length(self) -> int:
        return self._kv_cache.end - self._kv_cache.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):
    """The cache of a model that generates one token for every row at a time."""

    def __init__(self, max_rows: int, max_cells: int | None = None):
        """`max_cells`: most rows times columns, each a token's keys and values; None = no bound."""
        super().__init__(layers=[])
        self.layers: list[Any] = []
        self._max_rows, self.max_cells = max_rows, max_cells
        self.num_rows = self.first = self.end = 0
        self.num_cells = 0
        """Rows times columns in memory."""
        self._mask_BC = torch.zeros(max_rows, 0, dtype=torch.bool)

    @property
    def num_columns(self) -> int:
        return self._mask_BC.shape[1]

    def fits(self, lengths: Sequence[int]) -> bool:
        """Can rows that grow to these lengths, in tokens, be held together to their ends?"""
        return self.max_cells is None or len(lengths) * (max(lengths) + FREE_COLUMNS) <= self.max_cells

    def shrink(self) -> int:
        """Memory ran out: remove all rows, and hold a fifth less than was tried; returns the new bound in cells."""
        self.max_cells = int(0.8 * self.num_cells)
        self._clear()
        return self.max_cells

    def join(self, prefilled: DynamicCache, length: int) -> None:
        """Add a row, whose prompt of `length` tokens is in `prefilled`."""
        if not self.num_rows:
            self._allocate(prefilled, length + FREE_COLUMNS)
        elif length > self.end or self.num_rows == self.layers[0].keys.shape[0]:
            self._realign(max(length, self.end - self.first))
        row, start = self.num_rows, self.end - length
        for mine, new in zip(self.layers, prefilled.layers, strict=True):
            mine.keys[row, :, start : self.end] = new.keys[0]
            mine.values[row, :, start : self.end] = new.values[0]
        self._mask_BC[row] = False
        self._mask_BC[row, start : self.end] = True
        self.num_rows += 1
        self.first = min(self.first, start)

    def begin_step(self) -> torch.Tensor:
        """Prepare a column for a token of every row; returns the attention mask [B, L] for it."""
        if self.end == self.num_columns:
            self._realign(self.end - self.first)
        self._mask_BC[: self.num_rows, self.end] = True
        return self._mask_BC[: self.num_rows, self.first : self.end + 1]

    def end_step(self) -> None:
        self.end += 1

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Free these rows; returns the earlier place of the row that is now at each place."""
        order = list(range(self.num_rows))
        for row in sorted(rows, reverse=True):
            last = order.pop()
            if row < len(order):
                order[row] = last
        for place, row in enumerate(order):
            if place != row:
                for layer in self.layers:
                    for tensor in (layer.keys, layer.values):
                        tensor[place, :, self.first : self.end] = tensor[row, :, self.first : self.end]
                self._mask_BC[place] = self._mask_BC[row]
        self.num_rows = len(order)
        if order:
            self.first = int(self._mask_BC[: self.num_rows].any(dim=0).nonzero()[0])
        else:
            self._clear()
        return order

    def _clear(self) -> None:
        """Free the memory."""
        self.layers, self.num_rows, self.first, self.end, self.num_cells = [], 0, 0, 0, 0
        self._mask_BC = self._mask_BC[:, :0]

    def _rows_for(self, columns: int) -> int:
        """Rows of so many columns that are held at once."""
        rows = self._max_rows if self.max_cells is None else min(self._max_rows, self.max_cells // columns)
        self.num_cells = rows * columns
        return rows

    def _allocate(self, like: DynamicCache, columns: int) -> None:
        rows = self._rows_for(columns)
        self.first = self.end = columns - FREE_COLUMNS
        self._mask_BC = torch.zeros(self._max_rows, columns, dtype=torch.bool, device=like.layers[0].keys.device)
        self.layers = [_Layer(self) for _ in like.layers]
        for mine, their in zip(self.layers, like.layers, strict=True):
            _, heads, _, width = their.keys.shape
            mine.keys = their.keys.new_zeros(rows, heads, columns, width)
            mine.values = their.values.new_zeros(rows, heads, columns, their.values.shape[3])
            mine.is_initialized = True

    def _realign(self, end: int) -> None:
        """Move all rows so that they end at column `end`, with FREE_COLUMNS behind it."""
        width, columns = self.end - self.first, end + FREE_COLUMNS
        # What a longer row has left is used again, unless rows would have no place for it.
        if self.max_cells is None or self._max_rows * self.num_columns <= self.max_cells:
            columns = max(self.num_columns, columns)
        start, old, shape = end - width, slice(self.first, self.end), (self._rows_for(columns), columns)
        for layer in self.layers:
            layer.keys = _moved(layer.keys, old, start, shape, self.num_rows)
            layer.values = _moved(layer.values, old, start, shape, self.num_rows)
        mask_BC = self._mask_BC.new_zeros(self._max_rows, columns)
        mask_BC[:, start:end] = self._mask_BC[:, old]
        self._mask_BC, self.first, self.end = mask_BC, start, end


def _moved(tensor: torch.Tensor, old: slice, start: int, shape: tuple[int, int], rows: int) -> torch.Tensor:
    """[B, H, C, d] with the columns `old` of the first rows moved to `start`; `shape` is that of B and C afterwards."""
    kept = tensor[:rows, :, old].clone()
    if (tensor.shape[0], tensor.shape[2]) != shape:
        tensor = tensor.new_zeros(shape[0], tensor.shape[1], shape[1], tensor.shape[3])
    tensor[:rows, :, start : start + kept.shape[2]] = kept
    return tensor
