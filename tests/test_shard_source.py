"""Shards reach Ray Data lazily: every one once, by one pool, with few of them waiting, whatever their number."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.cloudpickle
import ray.data

from data.shard_list import ShardList
from data.shards import Input
from data.storage import Storage
from jobs.bench.pieces import StartsRecorded
from jobs.pipelines import shard_source
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.pipelines.shard_source import NEWEST, ShardSource, _Newest, one_by_one
from jobs.runner.settings import WorkerPool

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


def _shards(*sizes: int, rows: int = 5) -> ShardList:
    return ShardList.of([Input(f"/in/{i}", f"part-{i}.parquet", size) for i, size in enumerate(sizes)], rows)


def _listed(source: ShardSource) -> list[dict[str, Any]]:
    return [row for task in source.get_read_tasks(1) for table in task() for row in table.to_pylist()]


def test_lists_of_some_shards_are_the_list_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shards(12, 3, 40)
    numbers = np.arange(len(shards))[::-1]
    whole = _listed(ShardSource(shards, numbers))
    assert whole == [vars(shards[number]) for number in numbers.tolist()]
    monkeypatch.setattr(shard_source, "LISTED", 4)
    source = ShardSource(shards, numbers)
    tasks = source.get_read_tasks(1)
    assert [task.metadata.num_rows for task in tasks] == [4, 4, 4]
    assert _listed(source) == whole == _listed(source), "a task that is done again lists the same"


def test_statistics_are_of_the_newest() -> None:
    newest = _Newest([1])
    for number in range(5 * NEWEST):
        newest.extend([number, number])
    assert NEWEST <= len(newest) < 2 * NEWEST
    assert newest[-1] == 5 * NEWEST - 1


@pytest.mark.ray
def test_a_block_is_a_shard_and_few_wait(ray_cluster: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_source, "LISTED", 50)
    monkeypatch.setattr(shard_source, "MOST_WAITING", 8)
    waiting: list[int] = []
    room = shard_source.FewWaiting._room

    def watched(policy: Any, op: Any) -> int:
        waiting.append(policy._topology[op].output_queue.num_blocks)
        return room(policy, op)

    monkeypatch.setattr(shard_source.FewWaiting, "_room", watched)
    shards = _shards(500, 7, 493)
    context = ray.data.DataContext.get_current().copy()
    one_by_one(context)
    with ray.data.DataContext.current(context):
        source = ShardSource(shards, np.arange(len(shards)))
        dataset = ray.data.read_datasource(source, override_num_blocks=5, num_cpus=0).map_batches(
            lambda batch: batch, batch_size=1, batch_format="pyarrow", num_cpus=0.5
        )
    found = [
        row["start"]
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for row in batch.to_pylist()
        if len(batch) == 1
    ]
    assert sorted(found) == sorted(shard.start for shard in shards)
    # A second list is read only when fewer than 8 wait; of the first one all may, while the first task of all starts.
    assert 0 < max(waiting) < 8 + 50, "200 shards are four lists"


@pytest.mark.ray
def test_one_pool_takes_the_pieces_of_all_lists(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_source, "LISTED", 8)
    source, starts = Storage(str(tmp_path / "in")), tmp_path / "starts"
    starts.mkdir()
    for part in range(4):
        ids = [f"{part}-{i:03d}" for i in range(25)]
        write_table(pa.table({"id": ids}), source, f"part-{part}.parquet")
    pool, target = WorkerPool(num_actors=2, batch_rows=2), Storage(str(tmp_path / "out"))
    done = map_rows("pieces", [source], StartsRecorded, {"starts": str(starts)}, pool, target)
    assert done.counters == {"rows": 100}
    assert audit("pieces", [source], target).files == 4
    assert len([*starts.iterdir()]) == 2, "52 pieces are seven lists"
    assert "Operator" in Storage(f"{target.uri}.ray_data.txt").read_text()


@pytest.mark.ray
def test_a_large_pass_tells_that_its_statistics_are_of_the_newest(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shard_source, "NEWEST", 4)
    source, starts = Storage(str(tmp_path / "in")), tmp_path / "starts"
    starts.mkdir()
    write_table(pa.table({"id": [f"{i:03d}" for i in range(40)]}), source)
    pool = WorkerPool(num_actors=1, batch_rows=2)
    map_rows("pieces", [source], StartsRecorded, {"starts": str(starts)}, pool, Storage(str(tmp_path / "out")))
    assert "of the newest 4 or more of 20 shards" in capsys.readouterr().out
