"""Small rated data sets: texts with a column for each attribute and its scale, in JSONL, CSV and Parquet."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings.load import load
from data.attributes import shipped
from data.conversation import Conversation, Rejected
from data.errors import UserError
from data.scored_text import ScoredColumns
from data.sources import found, read
from jobs.runner.preset import Preset, SourceSettings

OASST = shipped("oasst")
JOKES = ScoredColumns.model_validate(
    {
        "text": "joke",
        "request": "Tell me a joke.",
        "attributes": {"humor": {"column": "score", "scale": [0, 5]}, "quality": {"column": "stars"}},
    }
)
PAIRS = ScoredColumns.model_validate(
    {
        "prompt": "q",
        "response": "a",
        "group": "thread",
        "attributes": {"toxicity": {"column": "kind", "scale": [5, 1]}},
    }
)


def rows(path: Path, columns: ScoredColumns = JOKES) -> list[Conversation | Rejected]:
    return list(read(str(path), "scored_text", OASST, "jokes", columns=columns))


def written(path: Path, content: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


TABLE = [("Knock, knock.\nWho?", 5.0, None), ("Hm.", 0.0, 2.0)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".csv.gz", ".tsv", ".parquet"])
def test_every_file_type_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"jokes{suffix}"
    names = ("joke", "score", "stars")
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(zip(names, r, strict=True)) for r in TABLE]), file)
    elif suffix == ".jsonl":
        written(file, "".join(json.dumps(dict(zip(names, r, strict=True))) + "\n" for r in TABLE))
    else:
        mark = "\t" if suffix == ".tsv" else ","
        body = [mark.join("" if v is None else f'"{v}"' for v in r) for r in TABLE]
        written(file, "\n".join([mark.join(names), *body]) + "\n")
    first, second = rows(file)
    assert isinstance(first, Conversation)
    assert isinstance(second, Conversation)
    assert [m.content for m in first.messages] == ["Tell me a joke.", "Knock, knock.\nWho?"]
    assert first.human == ({"humor": 4.0},)
    assert second.human == ({"humor": 0.0, "quality": 2.0},)
    assert first.group != second.group
    assert first.source == "jokes"


def test_prompt_and_response_with_a_scale_turned_around(tmp_path: Path) -> None:
    file = written(tmp_path / "x.csv", "q,a,kind,thread\nWhy?,Because.,5,t\nWhy?,No!,1,t\nHow?,So.,,t\n")
    found = [row for row in rows(file, PAIRS) if isinstance(row, Conversation)]
    assert [row.human[0] for row in found] == [{"toxicity": 0.0}, {"toxicity": 4.0}, {}]
    assert {row.group for row in found} == {"t"}


def test_folder_reads_csv_and_names_what_it_passes_by(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "joke,score,stars\nHa.,1,1\n")
    written(tmp_path / "b.jsonl", '{"joke": "Ho.", "score": 2, "stars": null}\n')
    written(tmp_path / "notes.txt", "x")
    assert len(rows(tmp_path)) == 2
    assert ".csv" in found(str(tmp_path), "scored_text").passed_by()
    assert found(str(tmp_path), "messages").files == (str(tmp_path / "b.jsonl"),)


@pytest.mark.parametrize(
    ("content", "reason", "told"),
    [
        ("joke,score,stars\nHa.,6,1\n", "rating_out_of_range", "'humor' is 6"),
        ("joke,score,stars\nHa.,nan,1\n", "wrong_type", "'score' is 'nan'"),
        ("joke,score,stars\nHa.,funny,1\n", "wrong_type", "must be a number"),
        ("joke,score\nHa.,3\n", "missing_column", "'stars'"),
        ("joke,score,stars\nHa.,3\n", "broken_csv", "2 values for 3 columns"),
        ('joke,score,stars\n"Ha."x,3,1\n', "broken_csv", "expected"),
        ('joke,score,stars\n"Ha.,3,1\n', "broken_csv", "unexpected end"),
        ("joke,score,score\nHa.,3,1\n", "broken_file", "'score' is named twice"),
        ("joke,score,stars\n,3,1\n", "empty_message", "turns"),
    ],
)
def test_bad_records_are_rejected_with_a_reason(tmp_path: Path, content: str, reason: str, told: str) -> None:
    [rejected] = rows(written(tmp_path / "x.csv", content))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, told in rejected.detail) == (reason, True), rejected
    assert rejected.line == (1 if reason == "broken_file" else 2)


def test_open_quote_is_a_broken_file_because_it_swallows_records(tmp_path: Path) -> None:
    content = 'joke,score,stars\nHa.,1,1\n"Ho.,2,1\nHe.,3,1\nHu "x",4,1\nHy.,4,1\n'
    first, rejected = rows(written(tmp_path / "x.csv", content))
    assert isinstance(first, Conversation)
    assert isinstance(rejected, Rejected)
    assert (rejected.line, rejected.reason) == (3, "broken_file")


def test_broken_record_takes_no_other_with_it(tmp_path: Path) -> None:
    content = b'joke,score,stars\nHa.,1,1\n"Ha."x,3,1\nHo.,2,\n\xff,1,1\n\nHi.,4,4\n'
    (tmp_path / "x.csv").write_bytes(content)
    found = rows(tmp_path / "x.csv")
    assert [row.messages[1].content for row in found if isinstance(row, Conversation)] == ["Ha.", "Ho.", "Hi."]
    assert [(r.line, r.reason) for r in found if isinstance(r, Rejected)] == [(3, "broken_csv"), (5, "invalid_utf8")]


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_rejections(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("csv") / "x.csv"
    file.write_bytes(b"joke,score,stars\n" + content)
    assert all(isinstance(row, Conversation | Rejected) for row in rows(file))


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"attributes": {"humor": {"column": "s"}}}, "either `text`, or `prompt` and `response`"),
        ({"text": "t", "prompt": "p", "attributes": {"humor": {"column": "s"}}}, "either `text`"),
        ({"prompt": "p", "attributes": {"humor": {"column": "s"}}}, "either `text`"),
        ({"text": "t", "attributes": {"humor": {"column": "s", "scale": [1, 1]}}}, "its ends must differ"),
        ({"text": "t", "request": " ", "attributes": {"humor": {"column": "s"}}}, "request is empty"),
        ({"text": "t", "attributes": {}}, "attributes"),
    ],
)
def test_wrong_columns_are_told(columns: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("`", ".")):
        ScoredColumns.model_validate(columns)


def test_preset_takes_columns_for_this_format_alone() -> None:
    with pytest.raises(ValueError, match=r"'x' of format scored_text needs columns: .*humor"):
        SourceSettings(name="x", format="scored_text", uri="x.csv")
    with pytest.raises(ValueError, match=r"of format messages takes no columns"):
        SourceSettings(name="x", format="messages", uri="x.jsonl", columns=JOKES)
    source = "[{name: x, format: scored_text, uri: x.csv, columns: {text: t, attributes: {fun: {column: s}}}}]"
    with pytest.raises((ValueError, UserError), match=r"columns.attributes: unknown attribute 'fun'"):
        load(Preset, "jobs/presets/demo.yaml", [f"rows.sources={source}"])
