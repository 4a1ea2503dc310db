"""Manifests: a stage's record is read back as it was; a file that this version did not write is one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.run_layout import MANIFEST, Manifest, as_json, read_manifest, read_record, write_record
from data.stage_metrics import Decision, LossPoint, NotRun, PromotionMetrics, RowsMetrics, StageMetrics
from data.storage import Storage


def written(folder: Path, metrics: StageMetrics) -> Storage:
    manifest = Manifest(
        stage="rows",
        fingerprint="f" * 16,
        description={"settings": {}},
        metrics=as_json(metrics),
        seconds=1.5,
        finished="2026-11-22T12:00:00Z",
        versions={"ray": "2.60.0"},
    )
    write_record(Storage(str(folder)) / MANIFEST, manifest)
    return Storage(str(folder))


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    rows = RowsMetrics(counts={"lab": {"read": 3, "rows": 2}}, rows=2)
    manifest = read_manifest(written(tmp_path, rows))
    assert manifest is not None
    assert manifest.read_as(RowsMetrics) == rows
    assert (manifest.stage, manifest.seconds) == ("rows", 1.5)


def test_no_manifest_is_no_stage(tmp_path: Path) -> None:
    assert read_manifest(Storage(str(tmp_path / "rows"))) is None


def test_a_stage_that_had_nothing_to_do_has_no_metrics_of_its_own(tmp_path: Path) -> None:
    not_run = NotRun(promoted=False, fell=("distinct-2",), policy="policy", not_run=("distinct-2",))
    manifest = read_manifest(written(tmp_path, not_run))
    assert manifest is not None
    assert manifest.read_as(PromotionMetrics) is None
    assert manifest.read_as(NotRun) == not_run


def test_what_was_left_out_stays_out() -> None:
    assert as_json(LossPoint(step=1, loss=0.5)) == {"step": 1, "loss": 0.5}
    assert as_json(Decision(promoted=True, fell=(), policy="p")) == {"promoted": True, "fell": [], "policy": "p"}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({}, "stage: Field required"),
        ([], "the whole: "),
        ({"stage": "rows", "figures": {"rows": 2}}, "fingerprint: Field required"),
        (None, "the whole: "),
    ],
)
def test_what_no_stage_of_this_version_wrote_is_one_sentence(tmp_path: Path, content: Any, key: str) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_manifest(Storage(str(tmp_path)))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/{MANIFEST} is not as this version writes it ({key}")
    assert said.endswith("delete the stage's folder and run again, or use the version that wrote it")
    assert "\n" not in said


def test_metrics_of_another_kind_are_one_sentence(tmp_path: Path) -> None:
    manifest = read_manifest(written(tmp_path, RowsMetrics(counts={}, rows=2)))
    assert manifest is not None
    with pytest.raises(UserError, match=r"the manifest of stage rows is not as .* \(promoted: Field required\)"):
        manifest.read_as(PromotionMetrics)


def test_a_record_beside_the_manifest_is_read_the_same_way(tmp_path: Path) -> None:
    write_record(Storage(str(tmp_path)) / "point.json", LossPoint(step=1, loss=0.5))
    assert read_record(Storage(str(tmp_path)) / "point.json", LossPoint) == LossPoint(step=1, loss=0.5)
