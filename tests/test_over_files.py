"""What many tasks say of some files each is what one says of all of them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle

from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import from_table, to_table
from data.examples import bucket
from data.lab import Lab, LabSettings
from data.ratings import Ratings
from data.shards import Input
from data.storage import Storage
from jobs.evaluation.held_out import rated_in, ratings_in, write_held_out
from jobs.pipelines import over_files as over_files_module
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.over_files import neighbors, over_files, rows_in
from jobs.policy_training.annotated_rows import seen_combinations, some_questions, some_rows
from jobs.reporting.rows import spreads
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


@pytest.fixture
def rows(tmp_path: Path) -> Storage:
    folder = Storage(str(tmp_path / "rows"))
    lab = list(Lab(LabSettings(num_rows=240)).rows())
    predicted = [replace(row, predicted=tuple(dict(v) for v in row.human), predictor="p") for row in lab]
    for part in range(6):
        write_table(to_table(predicted[part::6], SCHEMA), folder, f"part-{part}.parquet")
    return folder


def test_neighbors_are_files_until_there_are_enough_rows() -> None:
    inputs = [Input("", f"{i}", rows) for i, rows in enumerate((5, 5, 1, 20, 3))]
    assert [[i.part for i in task] for task in neighbors(inputs, 10)] == [["0", "1"], ["2", "3"], ["4"]]
    assert neighbors([], 10) == []


def _ids(files: Sequence[Input], first: str) -> list[str]:
    if first == "fail":
        raise OSError(5, "this file cannot be read")
    return [first, *(row.id for row in rows_in(files))]


@pytest.mark.ray
def test_results_come_in_the_order_of_the_files(
    ray_cluster: object, rows: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [row.id for table in rows.tables() for row in from_table(table)]
    [together] = over_files("ids", rows, _ids, "x")
    assert together == ["x", *expected]
    monkeypatch.setattr(over_files_module, "ROWS_PER_TASK", 1)
    apart = list(over_files("ids", rows, _ids, "x"))
    assert [len(part) for part in apart] == [41] * 6
    assert [id for part in apart for id in part[1:]] == expected
    with pytest.raises(StageError, match=r"ids: .*this file cannot be read"):
        list(over_files("ids", rows, _ids, "fail"))


@pytest.mark.ray
def test_passes_by_tasks_find_what_one_process_finds(
    ray_cluster: object, rows: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_passes(folder: str) -> tuple[object, ...]:
        target = Storage(str(tmp_path / folder))
        assert write_held_out(rows, SCHEMA, 5, 2, target) > 0
        held = [row.id for table in target.tables() for row in from_table(table)]
        return (
            held,
            ratings_in(rows, SCHEMA.names, 5, LabSettings()),
            seen_combinations(rows, SCHEMA, Calibration()),
            some_questions(rows, 20, 3),
            some_rows(rows, 30, "seed"),
            spreads(rows, "human", SCHEMA),
        )

    alone = all_passes("alone")
    monkeypatch.setattr(over_files_module, "ROWS_PER_TASK", 30)
    apart = all_passes("apart")
    conversations = [row for table in rows.tables() for row in from_table(table)]
    assert alone[0] == apart[0] == [row.id for row in rated_in(conversations, 5, 2)]
    assert all(bucket(row.group, 5) == 2 for row in conversations if row.id in alone[0])  # type: ignore[operator]
    for one, other in zip(vars(alone[1]).values(), vars(apart[1]).values(), strict=True):
        assert isinstance(alone[1], Ratings)
        np.testing.assert_array_equal(one, other)
    assert alone[2:5] == apart[2:5]
    assert len(alone[3]) == 20  # type: ignore[arg-type]
    for name, spread in alone[5].items():  # type: ignore[attr-defined]
        assert apart[5][name].counts == spread.counts  # type: ignore[index]
        assert apart[5][name].mean == pytest.approx(spread.mean)  # type: ignore[index]
