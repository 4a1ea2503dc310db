"""Exported rows as an Iceberg table in a catalog of one file: the very rows, and again after another export."""

import importlib.util
from pathlib import Path

import pytest
from support.exported_run import export_to
from support.lake import lake
from support.manifests import finish

from cluster.settings.errors import SettingsError
from data.attributes import shipped
from data.conversation import from_table, to_table
from data.errors import UserError
from data.lab import Lab, LabSettings
from data.stage_metrics import StageMetrics
from data.storage import Storage
from jobs.exporting import iceberg
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")
TABLE = "iceberg=lake.steerlm.annotated"


def _annotated(root: Path, num_rows: int) -> list[str]:
    rows = list(Lab(LabSettings(num_rows=num_rows)).rows())
    run = Storage(str(root / "runs" / "demo"))
    (run / "annotated").remove()
    for part in range(2):
        write_table(to_table(rows[part::2], SCHEMA), run / "annotated" / "rows", f"part-{part}.parquet")
    finish(run, "annotated", StageMetrics())
    return sorted(row.id for row in rows)


def test_a_table_holds_the_rows_of_the_last_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = lake(tmp_path, monkeypatch)
    for num_rows in (40, 24):
        ids = _annotated(tmp_path, num_rows)
        metrics = export_to(tmp_path / "runs", tmp_path / "out", "what=annotated", "format=parquet", TABLE)
        table = catalog.load_table("steerlm.annotated")
        assert metrics["snapshot"] == table.current_snapshot().snapshot_id
        found = table.scan().to_arrow()
        assert sorted(row.id for row in from_table(found)) == ids
    with pytest.raises(UserError, match=r"cannot open the catalog other .* set PYICEBERG_CATALOG__OTHER__URI"):
        iceberg.require_iceberg("other.steerlm.annotated")


def test_without_pyiceberg_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pyiceberg\[pyarrow,sql-sqlite\]', or leave iceberg out"):
        iceberg.require_iceberg("lake.steerlm.annotated")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("what=annotated", TABLE), "iceberg would be ignored"),
        (("what=policy", TABLE), "iceberg would be ignored"),
        (("what=annotated", "format=parquet", "iceberg=annotated"), "iceberg"),
    ],
)
def test_a_table_needs_all_columns_and_a_whole_name(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        export_to(tmp_path / "runs", tmp_path / "out", *words)
