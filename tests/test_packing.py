import itertools
import random

import pytest

from data.packing import best_fit, dealt, even_steps, steps_of


def test_best_fit_micro_example() -> None:
    assert best_fit([5, 3, 4, 2], 7) == [[0, 3], [2, 1]]


def test_every_sample_once_and_no_row_over_budget() -> None:
    lengths = [random.Random(1).randint(1, 100) for _ in range(997)]
    rows = best_fit(lengths, 128)
    assert sorted(itertools.chain(*rows)) == list(range(997))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 128
    assert sum(lengths) / (128 * len(rows)) > 0.97


def test_a_sample_over_the_budget_names_both_numbers() -> None:
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, a pack has 8; raise pack_tokens"):
        best_fit([1, 9], 8)


def test_steps_are_as_even_as_can_be() -> None:
    rows = [[i] for i in range(9)]
    assert [len(step) for step in even_steps(rows, 4)] == [3, 3, 3]
    assert [len(step) for step in even_steps(rows[:8], 4)] == [4, 4]
    assert list(itertools.chain(*even_steps(rows, 4))) == rows
    assert even_steps([], 4) == []


def test_rows_are_dealt_so_that_nobody_has_much_more_to_do() -> None:
    assert dealt([[1], [2], [3], [4]], [9, 1, 8, 2], 2) == [[0, 1], [2, 3]]
    rng = random.Random(4)
    for num_rows, workers in ((7, 3), (64, 8), (2, 4)):
        costs = [rng.uniform(1, 10) for _ in range(num_rows)]
        shares = dealt([[0]] * num_rows, costs, workers)
        assert sorted(itertools.chain(*shares)) == list(range(num_rows))
        assert max(map(len, shares)) <= -(-num_rows // workers)
        loads = [sum(costs[i] for i in share) for share in shares]
        assert max(loads) - min(loads) <= 10


def test_last_step_is_filled_with_empty_rows() -> None:
    assert steps_of([[1], [2], [3]], 2) == [[[1], [2]], [[3], []]]
    assert steps_of([], 2) == []
