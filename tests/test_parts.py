"""What a pass has done and what is left, from what lies on storage; merges without a limit on how many wait."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.counters import with_counters
from data.shards import Input, Output, inputs_of, merge, read, write_piece
from data.storage import Storage
from jobs.pipelines import parts as parts_module
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.parts import OrderedSum, Parts


@pytest.fixture
def inputs(tmp_path: Path) -> list[Input]:
    source = Storage(str(tmp_path / "in"))
    for number, size in enumerate((25, 7, 10)):
        ids = [f"{number}-{i:02d}" for i in range(size)]
        write_table(pa.table({"id": ids}), source, f"part-{number}.parquet")
    return inputs_of([source])


def _write(file: Input, output: Output, rows: int, numbers: list[int]) -> None:
    shards = file.shards(rows)
    for number in numbers:
        rows_of_it = read(shards[number])
        write_piece(with_counters(rows_of_it, {"rows": len(rows_of_it), "tenth": 0.1}), shards[number], output)


def test_what_is_there_is_not_missing(inputs: list[Input], tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), "f")
    _write(inputs[0], output, 10, [1])
    _write(inputs[2], output, 10, [0])
    merge(inputs[2].part, [inputs[2].shards(10)[0].piece], output)
    parts = Parts("test", inputs, output, 10, None)
    assert [(s.part, s.start) for s in map(parts.shards.__getitem__, parts.missing.tolist())] == [
        ("part-0.parquet", 0),
        ("part-0.parquet", 20),
        ("part-1.parquet", 0),
    ]
    assert parts.rows_before == 20
    # Pieces of another size, or of another fingerprint, do not count.
    assert Parts("test", inputs, output, 5, None).rows_before == 10
    assert Parts("test", inputs, Output(str(tmp_path / "out"), "g"), 10, None).rows_before == 0


def test_the_order_that_is_asked_for_holds_for_what_is_missing(inputs: list[Input], tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), "f")
    _write(inputs[0], output, 10, [1])
    backwards = Parts("test", inputs, output, 10, lambda shards: np.arange(len(shards))[::-1])
    assert backwards.missing.tolist() == [4, 3, 2, 0]


@pytest.mark.ray
def test_parts_are_merged_a_few_at_a_time_and_added_in_order(
    ray_cluster: object, inputs: list[Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "MERGES_AT_ONCE", 1)
    monkeypatch.setattr(parts_module, "ASKED_EVERY_S", 0.0)
    output = Output(str(tmp_path / "out"), "f")
    _write(inputs[1], output, 10, [0])  # an earlier run wrote all of its pieces, but did not merge them
    parts = Parts("test", inputs, output, 10, None)
    for file in (inputs[2], inputs[0]):
        _write(file, output, 10, list(range(len(file.shards(10)))))
        for shard in file.shards(10):
            parts.piece_done(shard.part)
    assert parts.finish() == {"rows": 42, "tenth": 0.1 + 0.1 + 0.1 + 0.1 + 0.1}
    assert output.parts.names() == [i.part for i in inputs]
    assert not output.all_pieces.exists()


def test_counters_add_up_alike_in_whatever_order_they_come() -> None:
    given = [{"a": 0.1}, {"a": 0.2, "b": 1.0}, {"a": 0.3}, {"a": 1e16}]
    sums = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        total = OrderedSum()
        for number in order:
            total.add(number, given[number])
        sums.append(total.total)
    assert sums[0] == sums[1]
