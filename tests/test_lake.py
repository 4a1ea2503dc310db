"""Rows are tables for every tool that reads Parquet: the same ids, texts and values, without code of ours."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest

from data.attributes import shipped
from data.conversation import SCHEMA_KEY, VALUES, Conversation, arrow_schema, to_table
from data.lab import Lab, LabSettings
from data.storage import Storage
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "howto.md"
SECTION = PAGE.read_text().partition("## Read the rows with another tool\n")[2].partition("\n## ")[0]


@pytest.fixture
def rows(tmp_path: Path) -> tuple[Path, list[Conversation]]:
    found = list(Lab(LabSettings(num_rows=40)).rows())
    found = [replace(row, predicted=tuple(dict.fromkeys(SCHEMA.names, 1.5) for _ in row.human)) for row in found]
    folder = tmp_path / "rows"
    for part in range(2):
        write_table(to_table(found[part::2], SCHEMA), Storage(str(folder)), f"part-{part}.parquet")
    return folder, [*found[::2], *found[1::2]]


def test_the_page_has_every_column_and_its_type() -> None:
    listed = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \|", PAGE.read_text().partition("## Read the rows with another tool")[2], re.M
    )
    columns = dict(listed[: len(arrow_schema(SCHEMA))])
    assert list(columns) == arrow_schema(SCHEMA).names
    values = str(arrow_schema(SCHEMA).field("human").type)
    for field in arrow_schema(SCHEMA):
        told = columns[field.name].strip()
        if str(field.type) == values:
            assert told in ("list<struct<attribute: float, ...>>", "the same")
        else:
            assert told == str(field.type).replace("item: ", "").replace("element: ", "")
    assert f"`{SCHEMA_KEY.decode()}`" in PAGE.read_text()


def require_same(found: Sequence[dict[str, Any]], written: Sequence[Conversation]) -> None:
    """The records of another reader have the ids, texts and values of the rows, in their order."""
    assert [record["id"] for record in found] == [row.id for row in written]
    for record, row in zip(found, written, strict=True):
        assert (record["source"], record["group"], record["system"]) == (row.source, row.group, row.system)
        assert record["messages"] == [{"role": m.role, "content": m.content} for m in row.messages]
        for kind in VALUES:
            values = getattr(row, kind) or ({},) * row.num_answers
            expected_SA = np.array([[answer.get(name, np.nan) for name in SCHEMA.names] for answer in values])
            found_SA = np.array([[answer[name] for name in SCHEMA.names] for answer in record[kind]], float)
            np.testing.assert_array_equal(found_SA, expected_SA.astype(np.float32))


def test_datasets_reads_them(rows: tuple[Path, list[Conversation]], tmp_path: Path) -> None:
    import datasets

    folder, written = rows
    found = datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    require_same(list(found), written)


def test_pyarrow_reads_filters_and_projects_them(rows: tuple[Path, list[Conversation]]) -> None:
    folder, written = rows
    require_same(pyarrow.dataset.dataset(folder).to_table().to_pylist(), written)
    source = written[0].source
    found = pyarrow.dataset.dataset(folder).to_table(columns=["id"], filter=pyarrow.dataset.field("source") == source)
    assert found.column("id").to_pylist() == [row.id for row in written if row.source == source]


def test_duckdb_reads_and_queries_them(rows: tuple[Path, list[Conversation]]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed; pip install duckdb")
    folder, written = rows
    database = duckdb.connect()
    found = database.execute(f"select * from '{folder}/*.parquet'")
    columns = [name for name, *_ in found.description]
    require_same([dict(zip(columns, record, strict=True)) for record in found.fetchall()], written)
    asked = f"select count(*), count(distinct id), avg(predicted[-1].helpfulness) from '{folder}/*.parquet'"
    assert database.execute(asked).fetchall() == [(len(written), len(written), 1.5)]


def test_duckdb_unnests_the_values_of_each_answer_as_the_page_shows(rows: tuple[Path, list[Conversation]]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed; pip install duckdb")
    folder, written = rows
    [shown, _] = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)
    assert len(duckdb.connect().execute(shown.replace("runs/demo/annotated/rows", str(folder))).fetchall()) > 40
    human = "select h.humor from (select unnest(human) as h from '{0}/*.parquet') where not isnan(h.humor)"
    found = duckdb.connect().execute(human.format(folder)).fetchall()
    expected = [np.float32(v["humor"]) for row in written for v in row.human if "humor" in v]
    assert sorted(value for (value,) in found) == sorted(expected)


def test_folders_of_several_runs_are_a_column(rows: tuple[Path, list[Conversation]], tmp_path: Path) -> None:
    folder, written = rows
    for run in ("one", "two"):
        shutil.copytree(folder, tmp_path / "runs" / f"run={run}")
    found = pyarrow.dataset.dataset(tmp_path / "runs", partitioning="hive").to_table()
    assert found.column("run").to_pylist() == ["one"] * len(written) + ["two"] * len(written)
    require_same(found.drop_columns("run").to_pylist()[: len(written)], written)
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed; pip install duckdb")
    asked = f"select run, count(*) from read_parquet('{tmp_path}/runs/*/*.parquet', hive_partitioning = true)"
    assert sorted(duckdb.connect().execute(f"{asked} group by run").fetchall()) == [("one", 40), ("two", 40)]


def test_polars_reads_them(rows: tuple[Path, list[Conversation]]) -> None:
    polars = pytest.importorskip("polars", reason="Polars is not installed; pip install polars")
    folder, written = rows
    assert polars.read_parquet(f"{folder}/*.parquet")["id"].to_list() == [row.id for row in written]
