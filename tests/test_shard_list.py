"""Numbers stand for the shards that objects stood for: the same ones, in the same order, whatever is asked of them."""

import numpy as np
import pytest

from data.shard_list import ShardList
from data.shards import Input, Shard

INPUTS = [Input("/in/a", "a.parquet", 25), Input("/in/b.c", "b.c.parquet", 7), Input("/in/d", "d.parquet", 10)]


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 25, 100])
def test_numbers_are_the_shards_of_the_files_in_order(rows: int) -> None:
    shards, expected = ShardList.of(INPUTS, rows), [s for file in INPUTS for s in file.shards(rows)]
    assert list(shards) == expected
    assert (len(shards), shards.num_files, shards.num_rows) == (len(expected), 3, 42)
    assert shards.rows_of(np.arange(len(shards))).tolist() == [s.stop - s.start for s in expected]
    for file, given in enumerate(INPUTS):
        assert [shards[number] for number in shards.of_file(file)] == given.shards(rows)
        assert {shards.file_of(number) for number in shards.of_file(file)} == {file}
    with pytest.raises(IndexError):
        shards[len(shards)]


def test_some_shards_travel_with_their_files_alone() -> None:
    shards = ShardList.of(INPUTS, 3)
    numbers = np.array([len(shards) - 1, 0, 8, 2])
    few, there = shards.some_of(numbers)
    assert [few[number] for number in there.tolist()] == [shards[number] for number in numbers.tolist()]
    assert few.parts.to_pylist() == ["a.parquet", "d.parquet"]
    whole, same = shards.some_of(np.arange(len(shards)))
    assert [whole[number] for number in same.tolist()] == list(shards)


def test_pieces_of_another_size_or_part_are_not_ours() -> None:
    shards = ShardList.of(INPUTS, 10)
    found = shards.numbers_of([s.piece for s in reversed(list(shards))])
    assert found.tolist() == list(range(len(shards)))[::-1]
    strangers = [
        *(s.piece for s in INPUTS[1].shards(3)),
        Shard("", "a.parquet", 30, 40).piece,
        Shard("", "a.parquet", 5, 15).piece,
        Shard("", "e.parquet", 0, 10).piece,
        "a.parquet",
    ]
    assert shards.numbers_of(strangers).tolist() == []


def test_nothing_is_a_list_too() -> None:
    shards = ShardList.of([], 5)
    assert not shards
    assert list(shards) == []
    assert shards.rows_of(np.array([], np.int64)).sum() == shards.num_rows == 0
