"""Rows are tables for every tool that reads Parquet: the same ids, texts and values, without code of ours."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest

from data.attributes import shipped
from data.conversation import SCHEMA_KEY, Conversation, arrow_schema, to_table
from data.lab import Lab, LabSettings
from data.storage import Storage
from jobs.pipelines.map_rows import write_table

SCHEMA = shipped("lab")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "howto.md"


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


def test_datasets_reads_them(rows: tuple[Path, list[Conversation]], tmp_path: Path) -> None:
    import datasets

    folder, written = rows
    found = datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert found["id"][:] == [row.id for row in written]
    assert found[3]["messages"] == [{"role": m.role, "content": m.content} for m in written[3].messages]
    for given, row in zip(found["human"][:], written, strict=True):
        values = np.array([[answer[name] for name in SCHEMA.names] for answer in given], float)
        expected = np.array([[v.get(name, np.nan) for name in SCHEMA.names] for v in row.human])
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_pyarrow_filters_and_projects_them(rows: tuple[Path, list[Conversation]]) -> None:
    folder, written = rows
    source = written[0].source
    found = pyarrow.dataset.dataset(folder).to_table(columns=["id"], filter=pyarrow.dataset.field("source") == source)
    assert found.column("id").to_pylist() == [row.id for row in written if row.source == source]


def test_duckdb_queries_them(rows: tuple[Path, list[Conversation]]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed; pip install duckdb")
    folder, written = rows
    asked = f"select count(*), count(distinct id), avg(predicted[-1].helpfulness) from '{folder}/*.parquet'"
    assert duckdb.connect().execute(asked).fetchall() == [(len(written), len(written), 1.5)]


def test_polars_reads_them(rows: tuple[Path, list[Conversation]]) -> None:
    polars = pytest.importorskip("polars", reason="Polars is not installed; pip install polars")
    folder, written = rows
    assert polars.read_parquet(f"{folder}/*.parquet")["id"].to_list() == [row.id for row in written]
