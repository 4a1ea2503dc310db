"""Lengths in, rows of a token budget out: padding-free packing for training and annotation. Knows no tokens, only lengths.

Best-fit decreasing (Johnson 1974), as in arXiv 2404.10830: every sample is kept whole, none is padded.
"""

import bisect
from collections.abc import Sequence

import numpy as np


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's lengths summing to at most `budget`.

    Micro-example: best_fit([5, 3, 4, 2], 7) -> [[0, 3], [2, 1]].
    Raises ValueError if a length exceeds the budget.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > budget:
            raise ValueError(f"sample {index} has {length} tokens, the row budget is {budget}; raise row_tokens or lower max_tokens")
        at = bisect.bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([])
            free, row = budget, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(index)
        bisect.insort(room, (free - length, row))
    return rows


def epoch_rows(lengths: Sequence[int], budget: int, seed: int, epoch: int, window: int = 4096) -> list[list[int]]:
    """All samples once, shuffled by (seed, epoch), packed window by window, rows shuffled again: the same on every rank."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    rows = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        rows += [[int(part[i]) for i in row] for row in best_fit([lengths[j] for j in part], budget)]
    return [rows[i] for i in rng.permutation(len(rows))]


def steps_of(rows: list[list[int]], rows_per_step: int) -> list[list[list[int]]]:
    """Optimizer steps of `rows_per_step` rows; the last is filled with empty rows, so that every rank has as many."""
    steps = [rows[i : i + rows_per_step] for i in range(0, len(rows), rows_per_step)]
    if steps:
        steps[-1] = steps[-1] + [[]] * (rows_per_step - len(steps[-1]))
    return steps
