"""Lengths in, packs of a token budget out: padding-free packing for training and annotation. Knows no tokens.

Best-fit decreasing (Johnson 1974), as in arXiv 2404.10830: every sample stays whole, none is padded.
"""

import bisect
import itertools
from collections.abc import Sequence

from data.errors import UserError


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Packs of indices into `lengths`, each pack's lengths summing to at most `budget`.

    Micro-example: best_fit([5, 3, 4, 2], 7) -> [[0, 3], [2, 1]].
    Raises UserError if a length exceeds the budget.
    """
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > budget:
            raise UserError(
                f"sample {index} has {length} tokens, a pack has {budget}; raise pack_tokens or lower max_tokens"
            )
        at = bisect.bisect_left(open_packs, (length, -1))
        if at == len(open_packs):
            packs.append([])
            free, pack = budget, len(packs) - 1
        else:
            free, pack = open_packs.pop(at)
        packs[pack].append(index)
        bisect.insort(open_packs, (free - length, pack))
    return packs


def even_steps(packs: list[list[int]], packs_per_step: int) -> list[list[list[int]]]:
    """Steps of at most `packs_per_step` packs, as even as can be: a small last step would weight its packs more.

    Micro-example: 9 packs, 4 at most a step -> 3 + 3 + 3.
    """
    num_steps = -(-len(packs) // packs_per_step)
    bounds = [i * len(packs) // max(num_steps, 1) for i in range(num_steps + 1)]
    return [packs[a:b] for a, b in itertools.pairwise(bounds)]


def steps_of(packs: list[list[int]], packs_per_step: int) -> list[list[list[int]]]:
    """Steps of `packs_per_step` packs; the last is filled with empty packs, so that every rank has as many."""
    steps = [packs[i : i + packs_per_step] for i in range(0, len(packs), packs_per_step)]
    if steps:
        steps[-1] = steps[-1] + [[]] * (packs_per_step - len(steps[-1]))
    return steps


def dealt(packs: Sequence[Sequence[int]], costs: Sequence[float], num_workers: int) -> list[list[int]]:
    """The packs of a step (by number) for each worker: the dearest first, always to the one with the least cost.

    No worker gets more than one pack more than another.

    Micro-example: dealt([[1], [2], [3], [4]], [9, 1, 8, 2], 2) -> [[0, 1], [2, 3]].
    """
    most = -(-len(packs) // num_workers)
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0.0] * num_workers
    for number in sorted(range(len(packs)), key=lambda i: -costs[i]):
        worker = min((w for w in range(num_workers) if len(shares[w]) < most), key=lambda w: (loads[w], w))
        shares[worker].append(number)
        loads[worker] += costs[number]
    return shares
