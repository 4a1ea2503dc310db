import itertools
import random

import pytest

from data.packing import best_fit, epoch_rows, steps_of


def test_best_fit_micro_example() -> None:
    assert best_fit([5, 3, 4, 2], 7) == [[0, 3], [2, 1]]


def test_every_sample_once_and_no_row_over_budget() -> None:
    lengths = [random.Random(1).randint(1, 100) for _ in range(997)]
    rows = best_fit(lengths, 128)
    assert sorted(itertools.chain(*rows)) == list(range(997))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 128
    assert sum(lengths) / (128 * len(rows)) > 0.97


def test_a_sample_over_the_budget_names_both_numbers() -> None:
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, the row budget is 8; raise row_tokens"):
        best_fit([1, 9], 8)


def test_epochs_differ_and_repeat_by_seed() -> None:
    lengths = [random.Random(2).randint(1, 50) for _ in range(500)]
    first, again, second = (epoch_rows(lengths, 64, seed=3, epoch=e, window=100) for e in (0, 0, 1))
    assert first == again != second
    assert sorted(itertools.chain(*second)) == list(range(500))


def test_last_step_is_filled_with_empty_rows() -> None:
    assert steps_of([[1], [2], [3]], 2) == [[[1], [2]], [[3], []]]
    assert steps_of([], 2) == []
