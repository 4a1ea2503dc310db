"""Lengths in, rows of a token budget out: padding-free packing for training and annotation. Knows no tokens, only lengths.

Best-fit decreasing (Johnson 1974), as in arXiv 2404.10830: every sample is kept whole, none is padded.
"""

import bisect
import itertools
from collections.abc import Sequence

from data.errors import UserError


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's lengths summing to at most `budget`.

    Micro-example: best_fit([5, 3, 4, 2], 7) -> [[0, 3], [2, 1]].
    Raises UserError if a length exceeds the budget.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > budget:
            raise UserError(
                f"sample {index} has {length} tokens, the row budget is {budget}; raise pack_tokens or lower max_tokens"
            )
        at = bisect.bisect_left(room, (length, -1))
        if at == len(room):
            rows.append([])
            free, row = budget, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(index)
        bisect.insort(room, (free - length, row))
    return rows


def even_steps(rows: list[list[int]], packs_per_step: int) -> list[list[list[int]]]:
    """Steps of at most `packs_per_step` rows and as even as can be: a small last step would count its rows for more than the others.

    Micro-example: 9 rows, 4 at most a step -> 3 + 3 + 3.
    """
    num_steps = -(-len(rows) // packs_per_step)
    bounds = [i * len(rows) // max(num_steps, 1) for i in range(num_steps + 1)]
    return [rows[a:b] for a, b in itertools.pairwise(bounds)]


def steps_of(rows: list[list[int]], packs_per_step: int) -> list[list[list[int]]]:
    """Steps of `packs_per_step` rows; the last is filled with empty rows, so that every rank has as many."""
    steps = [rows[i : i + packs_per_step] for i in range(0, len(rows), packs_per_step)]
    if steps:
        steps[-1] = steps[-1] + [[]] * (packs_per_step - len(steps[-1]))
    return steps


def dealt(rows: Sequence[Sequence[int]], costs: Sequence[float], num_workers: int) -> list[list[int]]:
    """Which of a step's rows (by number) each worker does: the dearest first, always to who has the least, none more than one row more than another.

    Micro-example: dealt([[1], [2], [3], [4]], [9, 1, 8, 2], 2) -> [[0, 1], [2, 3]].
    """
    most = -(-len(rows) // num_workers)
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for number in sorted(range(len(rows)), key=lambda i: -costs[i]):
        worker = min((w for w in range(num_workers) if len(shares[w]) < most), key=lambda w: (loads[w], w))
        shares[worker].append(number)
        loads[worker] += costs[number]
    return shares
