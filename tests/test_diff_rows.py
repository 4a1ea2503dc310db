"""`jobs.diff` on rows and their labels: by id in buckets, in another order, renamed, and with other values."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.diffs import PART, ROWS, changed, differ, stage
from support.manifests import manifest

from data.conversation import Message
from data.run_layout import MANIFEST, write_record
from data.storage import Storage
from jobs.diffing import rows as rows_module


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Storage, Storage]:
    return Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))


def test_labels_are_compared_per_attribute(runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]) -> None:
    stage(runs[0])
    rows = changed(3, predicted=({"helpfulness": 3.25, "verbosity": 1.5}, {"helpfulness": 0.5}))
    rows[10] = replace(rows[10], predicted=({"helpfulness": 0.0}, {"helpfulness": 2.25}))
    stage(runs[1], rows)
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    found = last["stages"]["annotated"]
    assert found["differs"] == ["labels"]
    assert found["rows"]["rows"]["relabeled"] == 2
    assert found["rows"]["rows"]["labels"] == {
        "predicted": {
            "helpfulness": {
                "rows": 2,
                "answers": 3,
                "total": 2.0,
                "mean": 2 / 3,
                "rated_in_one": 0,
                "largest": -1.5,
                "largest_id": ROWS[3].id,
            },
            "verbosity": {
                "rows": 1,
                "answers": 0,
                "total": 0,
                "mean": 0,
                "rated_in_one": 1,
                "largest": 0,
                "largest_id": "",
            },
        }
    }
    assert f"predicted.helpfulness     2        3          0.67    -1.50  {ROWS[3].id}" in lines
    _, _, last = differ(capsys, *runs, "tolerance=0.25")
    labels = last["stages"]["annotated"]["rows"]["rows"]["labels"]["predicted"]
    assert labels["helpfulness"]["rows"] == 1


@pytest.mark.parametrize("bucket_rows", [1, 5, 1000])
def test_other_rows_are_found_by_id_in_buckets_of_any_size(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], bucket_rows: int
) -> None:
    stage(runs[0], ROWS[:20])
    other = changed(4, predicted=({"helpfulness": 0.0}, {"helpfulness": 2.0}))
    other[7] = replace(other[7], messages=(*other[7].messages[:3], Message("assistant", "else")))
    stage(runs[1], other[2:][::-1], per_part=9)
    code, lines, last = differ(capsys, *runs, f"bucket_rows={bucket_rows}")
    found = last["stages"]["annotated"]["rows"]["rows"]
    assert code == 1
    assert found["rows"] == [20, 21]
    assert [only["count"] for only in found["only"]] == [2, 3]
    assert set(found["only"][0]["first"]) == {row.id for row in ROWS[:2]}
    assert set(found["only"][1]["first"]) == {row.id for row in ROWS[20:]}
    assert found["texts"] == {"count": 1, "first": [ROWS[7].id]}
    assert found["labels"]["predicted"]["helpfulness"]["largest"] == -4
    assert found["labels"]["predicted"]["verbosity"]["rated_in_one"] == 1
    assert last["stages"]["annotated"]["differs"] == ["rows", "labels"]
    assert "2 of 20 rows in a alone" in lines
    assert "3 of 21 rows in b alone" in lines


@pytest.mark.parametrize("turned", [True, False])
def test_the_same_rows_in_another_order_or_cut_are_said_to_be_so(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], turned: bool
) -> None:
    stage(runs[0])
    stage(runs[1], ROWS[::-1] if turned else ROWS, per_part=PART if turned else 7)
    code, lines, last = differ(capsys, *runs)
    assert code == 1
    assert last["stages"]["annotated"]["differs"] == ["rows"]
    assert "rows: rows in other files or in another order" in lines
    assert last["stages"]["annotated"]["rows"]["rows"]["only"] == [{"count": 0, "first": []}] * 2


def test_renamed_files_are_found_by_their_digests(
    runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for run in runs:
        stage(run)
    rows = Path(runs[1].path) / "annotated" / "rows"
    os.rename(rows / "part-00000.parquet", rows / "part-99999.parquet")
    done = manifest("annotated")
    write_record(runs[1] / "annotated" / MANIFEST, done)
    monkeypatch.setattr(rows_module, "compared_columns", None)
    _, lines, last = differ(capsys, *runs)
    assert last["stages"]["annotated"]["rows"]["rows"]["reordered"]
    assert "rows in other files" in lines


def test_ids_are_listed_up_to_a_limit(runs: tuple[Storage, Storage], capsys: pytest.CaptureFixture[str]) -> None:
    stage(runs[0])
    stage(runs[1], ROWS[:12])
    _, lines, last = differ(capsys, *runs, "shown=2")
    assert last["stages"]["annotated"]["rows"]["rows"]["only"][0] == {"count": 11, "first": [r.id for r in ROWS[12:14]]}
    assert f"11 of 23 rows in a alone: {ROWS[12].id}, {ROWS[13].id} and 9 more" in lines
