"""Rows read from an Iceberg table in a catalog of one file: one snapshot, its rows, a sentence for all else."""

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.lake import lake, named_lake
from support.source_lines import DEMO

from cluster.settings.errors import SettingsError
from cluster.settings.load import load
from data import iceberg
from data.attributes import shipped
from data.conversation import Conversation, Rejected, from_table, to_table
from data.errors import UserError
from data.lab import Lab, LabSettings
from data.own_rows import iceberg_rows, require_columns
from jobs.pipelines import rows as pipeline
from jobs.prepare import STAGE
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.needs import needs
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, perform

SCHEMA = shipped("lab")
TABLE = "lake.steerlm.rows"


def _rows(num_rows: int) -> list[Conversation]:
    return list(Lab(LabSettings(num_rows=num_rows)).rows())


def _table(rows: Iterable[Conversation]) -> pa.Table:
    return to_table(rows, SCHEMA).replace_schema_metadata(None)


def _made(catalog: Any, first: pa.Table, name: str = "steerlm.rows") -> Any:
    catalog.create_namespace_if_not_exists("steerlm")
    table = catalog.create_table(name, schema=first.schema)
    table.append(first)
    return table


def _run(root: Path, *words: str, uri: str = TABLE) -> Run:
    source = json.dumps([{"name": "lake", "format": "iceberg", "uri": uri}])
    return Run(load(Preset, DEMO, [f"storage={root}/runs", f"rows.sources={source}", *words]))


def _ids(run: Run) -> list[str]:
    return sorted(row.id for table in (run.folder("rows") / "rows").tables() for row in from_table(table))


def _snapshot(run: Run) -> str:
    manifest = run.manifest("rows")
    assert manifest is not None
    return str(manifest.description["inputs"][TABLE])


def test_the_rows_of_a_table_are_read_and_its_snapshot_is_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _rows(60)
    table = _made(lake(tmp_path, monkeypatch), _table(rows[:40]))
    table.append(_table(rows[40:]))
    run = _run(tmp_path)
    assert not perform(run, STAGE).skipped
    found = {row.id: row for part in (run.folder("rows") / "rows").tables() for row in from_table(part)}
    assert found == {row.id: row for row in from_table(_table(rows))}
    assert _snapshot(run) == f"snapshot {table.current_snapshot().snapshot_id}"
    assert perform(run, STAGE).skipped
    table.append(_table(_rows(80)[60:]))
    assert not perform(run, STAGE).skipped
    assert len(_ids(run)) == 80


def test_many_splits_of_a_table_are_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _made(lake(tmp_path, monkeypatch), _table(_rows(50)))
    with table.transaction() as transaction:
        transaction.set_properties({"write.parquet.row-group-limit": "10"})
    table.append(_table(_rows(120)[50:]))
    one, many = _run(tmp_path, "run=one"), _run(tmp_path, "run=many", "rows.split_bytes=3000")
    reader, splits = pipeline._planned(0, many.preset.rows.sources[0], many, many.folder("rows"))
    assert len(splits) > 4
    assert any(split.start for split in splits)
    assert reader.format == "iceberg"
    monkeypatch.setattr(pipeline, "ClusterCalls", lambda at_once: pipeline.HereCalls())
    for run in (one, many):
        perform(run, STAGE)
    parts = [[from_table(t) for t in (run.folder("rows") / "rows").tables()] for run in (one, many)]
    assert [[*part] for part in parts[0]] == [[*part] for part in parts[1]]


def test_a_killed_stage_goes_on_with_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(90)
    table = _made(lake(tmp_path, monkeypatch), _table(rows[:30]))
    begun = f"snapshot {table.current_snapshot().snapshot_id}"
    run = _run(tmp_path)
    _killed(run, monkeypatch)
    table.append(_table(rows[30:]))
    assert not perform(run, STAGE).skipped
    assert _snapshot(run) == begun
    assert len(_ids(run)) == 30
    assert not perform(run, STAGE).skipped, "a finished stage reads what is new in a table"
    assert _snapshot(run) != begun
    assert len(_ids(run)) == 90


def test_a_snapshot_that_is_gone_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _made(lake(tmp_path, monkeypatch), _table(_rows(30)))
    old = table.current_snapshot().snapshot_id
    run = _run(tmp_path)
    _killed(run, monkeypatch)
    table.append(_table(_rows(50)[30:]))
    table.maintenance.expire_snapshots().by_id(old).commit()
    perform(run, STAGE)
    assert _snapshot(run) == f"snapshot {table.refresh().current_snapshot().snapshot_id}"
    assert len(_ids(run)) == 50
    with pytest.raises(UserError, match=rf"rows has no snapshot {old} any more; run again"):
        iceberg.read_snapshot(TABLE, old, ())


def _killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage, killed when its pieces are there and its parts are not."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "write_rejections", killed)
        with pytest.raises(KeyboardInterrupt):
            perform(run, STAGE)


@pytest.mark.ray
def test_a_table_is_read_on_the_cluster(ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = _made(lake(tmp_path, monkeypatch), _table(_rows(40)))
    for stop in (80, 120):
        table.append(_table(_rows(stop)[stop - 40 :]))
    run = _run(tmp_path, "rows.split_bytes=3000", "rows.num_tasks=2")
    perform(run, STAGE)
    assert _ids(run) == sorted(row.id for row in _rows(120))


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, rows = lake(tmp_path, monkeypatch), _table(_rows(8))
    _made(catalog, rows)
    _made(catalog, rows.drop_columns(["group", "tokens"]), "steerlm.few")
    catalog.create_table("steerlm.empty", schema=rows.schema)
    sentences = {
        "lake.steerlm.row": r"Iceberg table lake.steerlm.row, and there is no such table \(did you mean 'steerlm.rows'",
        "lake.steerml.rows": r"no such table: the catalog has no namespace steerml; write catalog.namespace.table",
        "lake.steerlm.empty": r"lake.steerlm.empty has no snapshot: nothing was ever written into it",
        "lake.steerlm.few": r"lake.steerlm.few lacks the columns group, tokens: its columns must be those of a run's",
        "pond.steerlm.rows": r"cannot open the catalog pond .*; set PYICEBERG_CATALOG__POND__URI",
    }
    for uri, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence):
            perform(_run(tmp_path, uri=uri), STAGE)


def test_a_catalog_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named_lake(tmp_path / "nowhere", monkeypatch)
    with pytest.raises(UserError, match=r"cannot open the catalog lake \(.*\); set PYICEBERG_CATALOG__LAKE__URI"):
        perform(_run(tmp_path), STAGE)


def test_a_column_that_was_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _table(_rows(8))
    table = _made(lake(tmp_path, monkeypatch), rows)
    for old, new in (("system", "before"), ("source", "system"), ("before", "source")):
        with table.update_schema() as update:
            update.rename_column(old, new)
    with pytest.raises(UserError, match=r"has a column system, which was once called (before|source): older"):
        perform(_run(tmp_path), STAGE)


def test_deleted_rows_and_other_files_are_refused() -> None:
    manifest = pytest.importorskip("pyiceberg.manifest", reason="needs the extra lake: pyiceberg is not installed")
    tables = pytest.importorskip("pyiceberg.table")

    def file(kind: str) -> Any:
        named = manifest.FileFormat[kind]
        return manifest.DataFile.from_args(file_path=f"a.{kind}", file_format=named, file_size_in_bytes=1)

    iceberg._require_plain(TABLE, tables.FileScanTask(file("PARQUET")))
    with pytest.raises(UserError, match=r"rows that were deleted by files of their own, .* rewrite its data files"):
        iceberg._require_plain(TABLE, tables.FileScanTask(file("PARQUET"), delete_files={file("PARQUET")}))
    with pytest.raises(UserError, match=r"data files of format AVRO; rewrite them as PARQUET"):
        iceberg._require_plain(TABLE, tables.FileScanTask(file("AVRO")))


def test_without_pyiceberg_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lake.steerlm.rows, but pyiceberg is not installed; pip install 'pyiceberg"):
        perform(_run(tmp_path), STAGE)


def test_the_doctor_does_not_look_for_a_table_among_the_files(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert "rows.sources.0.uri" not in needs(run, ["rows"]).reads
    refuse_what_is_not_there(run.preset)


@pytest.mark.parametrize("uri", ["rows", "lake.rows", "s3://bucket/rows", "lake.steerlm.rows.", ""])
def test_a_table_has_a_whole_name(tmp_path: Path, uri: str) -> None:
    with pytest.raises(SettingsError, match=r"catalog\.namespace\.table|has no uri"):
        _run(tmp_path, uri=uri)


def test_columns_may_be_written_in_a_lakes_way_and_no_other() -> None:
    rows = _table(_rows(3))

    def cast(**types: pa.DataType) -> pa.Schema:
        return pa.schema([pa.field(f.name, types.get(f.name, f.type)) for f in rows.schema])

    message = pa.struct([("content", pa.large_string()), ("role", pa.large_string())])
    values = pa.large_list(pa.struct([(name, pa.float64()) for name in SCHEMA.names[::-1]]))
    require_columns(
        cast(id=pa.large_string(), messages=pa.large_list(message), human=values, tokens=pa.int64()), SCHEMA, "t"
    )
    with pytest.raises(UserError, match=r"t has columns of other types, tokens \(string\): its columns must be"):
        require_columns(cast(tokens=pa.string()), SCHEMA, "t")
    other = pa.list_(pa.struct([("charm", pa.float32())]))
    with pytest.raises(UserError, match=r"t has the attributes charm in predicted, and .*set `attributes`"):
        require_columns(cast(predicted=other), SCHEMA, "t")


def test_a_row_with_a_null_is_rejected_and_counted(tmp_path: Path) -> None:
    rows = _table(_rows(3)).to_pylist()
    rows[1]["system"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=_table([]).schema), tmp_path / "a.parquet")
    found = list(iceberg_rows(str(tmp_path / "a.parquet"), SCHEMA, "lake"))
    assert [type(row) for row in found] == [Conversation, Rejected, Conversation]
