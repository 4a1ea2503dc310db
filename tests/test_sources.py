"""The front door of all formats: files, folders, globs, limits, torn and foreign files, our own rows, and real rows."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_rows import HELPSTEER, SCHEMA, good, helpsteer, real, reasons, rows, write

from data.attributes import SchemaMismatch
from data.conversation import Conversation, Message, Rejected, content_id, to_table
from data.errors import UserError
from data.source_files import files_of, shown_path, source_files
from data.sources import FORMATS, read, read_texts


def test_our_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    written = Conversation(
        "s",
        "Sys",
        (Message("user", "Hi"), Message("assistant", "A")),
        human=({"humor": 1.0},),
        predicted=({},),
        requested=({},),
    )
    no_answer = Conversation("s", "", (Message("user", "Hi"),))
    pq.write_table(to_table([written, no_answer], SCHEMA), tmp_path / "part-0.parquet")
    found = list(read(str(tmp_path), "steerlm", SCHEMA))
    assert found[0] == written
    assert reasons(found) == [(2, "no_answer")]


def test_rows_with_another_schema_are_refused(tmp_path: Path) -> None:
    pq.write_table(to_table([], HELPSTEER), tmp_path / "none.parquet")
    pq.write_table(
        to_table([Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")))], HELPSTEER),
        tmp_path / "part.parquet",
    )
    with pytest.raises(SchemaMismatch, match=r"this run .*part\.parquet"):
        list(read(str(tmp_path / "part.parquet"), "steerlm", SCHEMA))
    with pytest.raises(SchemaMismatch, match=r"this run .*none\.parquet"):
        list(read(str(tmp_path / "none.parquet"), "steerlm", SCHEMA))
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="carries no attribute schema"):
        list(read(str(tmp_path / "foreign.parquet"), "steerlm", SCHEMA))


def test_any_format_may_come_as_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([helpsteer(), helpsteer(response="")]), tmp_path / "rows.parquet")
    found = list(read(str(tmp_path), "helpsteer", SCHEMA))
    assert isinstance(found[0], Conversation)
    assert reasons(found) == [(2, "empty_message")]


@pytest.mark.parametrize("format", ["helpsteer", "steerlm"])
def test_a_file_that_is_no_parquet(tmp_path: Path, format: str) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 torn")
    assert reasons(list(read(str(tmp_path), format, SCHEMA))) == [(0, "broken_file")]


@pytest.mark.parametrize(
    ("damage", "num_whole"), [(lambda b: b[: len(b) // 2], 1), (lambda b: b[:-6], 1), (lambda b: b"no gzip" + b, 0)]
)
def test_a_torn_gz_gives_what_is_whole_and_one_rejection(tmp_path: Path, damage: Any, num_whole: int) -> None:
    content = "".join(json.dumps(helpsteer(response=os.urandom(99).hex())) + "\n" for _ in range(200))
    (tmp_path / "rows.jsonl.gz").write_bytes(damage(gzip.compress(content.encode())))
    found = list(read(str(tmp_path / "rows.jsonl.gz"), "helpsteer", SCHEMA))
    assert all(isinstance(r, Conversation) for r in found[:-1])
    assert len(found) > num_whole
    assert reasons(found) == [(len(found), "broken_file")]


def test_gz_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(
        gzip.compress(b"\xef\xbb\xbf" + json.dumps(helpsteer()).encode() + b"\r\n\r\n")
    )
    assert len(good(list(read(str(tmp_path / "rows.jsonl.gz"), "helpsteer", SCHEMA)))) == 1


def test_limit_counts_rows_not_rejections(tmp_path: Path) -> None:
    uri = write(tmp_path / "rows.jsonl", "{", *(helpsteer(response=str(i)) for i in range(9)))
    assert len(list(read(uri, "helpsteer", SCHEMA, limit=3))) == 4
    assert len(list(read(uri, "helpsteer", SCHEMA, limit=0))) == 10
    assert len(list(read(uri, "helpsteer", SCHEMA, limit=99))) == 10


def test_the_source_name_is_part_of_the_id(tmp_path: Path) -> None:
    uri = write(tmp_path / "rows.jsonl", helpsteer())
    [plain], [named] = (good(list(read(uri, "helpsteer", SCHEMA, source=s))) for s in ("", "mine"))
    assert (plain.source, named.source) == ("helpsteer", "mine")
    assert plain.id == content_id("helpsteer", "", plain.messages) != named.id
    assert plain.group == named.group


def test_files_of_a_folder_a_glob_and_a_file(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl.gz", "deep/c.parquet", "README.md", "odd[1].txt"]
    for name in names:
        write(tmp_path / name)
    assert files_of(str(tmp_path)) == [str(tmp_path / n) for n in ("a.jsonl.gz", "b.jsonl", "deep/c.parquet")]
    assert files_of(f"{tmp_path}/*.jsonl*") == [str(tmp_path / n) for n in ("a.jsonl.gz", "b.jsonl")]
    assert files_of(str(tmp_path / "odd[1].txt")) == [str(tmp_path / "odd[1].txt")]
    assert files_of(str(tmp_path / "**/*.parquet")) == [str(tmp_path / "deep/c.parquet")]


@pytest.mark.case("19-folder-leftovers")
def test_what_tools_leave_in_a_folder_is_no_data(tmp_path: Path) -> None:
    leftovers = [
        ".x.jsonl.crc",
        ".hidden.jsonl",
        "_temporary/0/p.jsonl",
        "_SUCCESS",
        ".ipynb_checkpoints/x.jsonl",
        "_.parquet",
    ]
    for name in ["x.jsonl", "sub/y.jsonl", "notes.csv", *leftovers]:
        write(tmp_path / name)
    found = source_files(str(tmp_path))
    assert found.files == (str(tmp_path / "sub/y.jsonl"), str(tmp_path / "x.jsonl"))
    assert found.other_suffix == (str(tmp_path / "notes.csv"),)
    assert found.hidden == tuple(sorted(str(tmp_path / name) for name in leftovers))
    assert files_of(f"{tmp_path}/*.jsonl") == [str(tmp_path / "x.jsonl")]
    assert files_of(f"{tmp_path}/.hid*.jsonl") == [str(tmp_path / ".hidden.jsonl")]
    assert files_of(str(tmp_path / "_temporary")) == [str(tmp_path / "_temporary/0/p.jsonl")]
    with pytest.raises(FileNotFoundError, match=r"without a file that ends in .*; there is x\.jsonl"):
        files_of(str(tmp_path / ".ipynb_checkpoints"), (".parquet",))
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing to read at .*; there is \.hidden\.jsonl"):
        files_of(f"{tmp_path}/*.jsonl")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"human": [{"humor": 1.0}] * 2}, "human has 2 entries for 1 answers"),
        ({"messages": None}, "column 'messages' holds a null"),
        ({"messages": [{"role": "user", "content": None}]}, "column 'messages' holds a null"),
        ({"human": [None]}, "column 'human' holds a null"),
        ({"tokens": None}, "column 'tokens' holds a null"),
    ],
)
def test_own_rows_that_hold_nulls_or_odd_values_are_rejected(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    turns = (Message("user", "Hi"), Message("assistant", "A"))
    table = to_table([Conversation("s", "", turns), Conversation("s", "", turns, id="other")], SCHEMA)
    [record, other] = table.to_pylist()
    pq.write_table(pa.Table.from_pylist([record | change, other], schema=table.schema), tmp_path / "x.parquet")
    rejected, kept = read(str(tmp_path), "steerlm", SCHEMA)
    assert isinstance(rejected, Rejected)
    assert (rejected.line, rejected.reason) == (1, "wrong_type")
    assert sentence in rejected.detail
    assert isinstance(kept, Conversation)


def test_own_rows_with_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    table = to_table([Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")))], SCHEMA)
    tokens = table.schema.get_field_index("tokens")
    pq.write_table(table.set_column(tokens, "tokens", pa.array(["x"])), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"has columns of other types \(tokens\)"):
        list(read(str(tmp_path), "steerlm", SCHEMA))
    odd = table.replace_schema_metadata({b"steerlm.schema": b"{}"})
    pq.write_table(odd, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="carries an attribute schema that is none"):
        list(read(str(tmp_path), "steerlm", SCHEMA))


@pytest.mark.parametrize("uri", ["https://bob:SECRET@host/x.jsonl", f"https://bob:SECRET@host/{'x' * 70}.jsonl"])
def test_the_end_of_a_uri_in_a_message_holds_no_credential(uri: str) -> None:
    assert "SECRET" not in shown_path(uri + "?sig=SECRET")
    assert shown_path(uri + "?sig=SECRET").endswith("x.jsonl")
    assert shown_path("/data/a@b?c.jsonl") == "/data/a@b?c.jsonl"


def test_other_filesystems_keep_their_protocol() -> None:
    with fsspec.open("memory://test_sources/a.jsonl", "wb") as file:
        file.write(json.dumps(helpsteer()).encode())
    assert files_of("memory://test_sources") == ["memory:///test_sources/a.jsonl"]
    assert len(good(list(read("memory://test_sources/*.jsonl", "helpsteer", SCHEMA)))) == 1


def test_user_errors_are_raised_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl")
    with pytest.raises(FileNotFoundError, match=r"trian\.jsonl.*did you mean 'train\.jsonl'"):
        read(str(tmp_path / "trian.jsonl"), "helpsteer", SCHEMA)
    with pytest.raises(FileNotFoundError, match=r"nothing to read at .*folder"):
        read(str(tmp_path / "no" / "such"), "helpsteer", SCHEMA)
    with pytest.raises(FileNotFoundError, match="nothing to read at ''"):
        files_of("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="without a file that ends in"):
        files_of(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"unknown format 'helpster'.*did you mean 'helpsteer'.*allowed: .*nemo"):
        read(str(tmp_path / "train.jsonl"), "helpster", SCHEMA)


def test_texts(tmp_path: Path) -> None:
    uri = write(tmp_path / "texts.jsonl", {"text": "a"}, {"text": " "}, {"text": "b"}, {"text": 3})
    assert list(read_texts(uri, limit=2)) == ["a", "b"]
    with pytest.raises(ValueError, match=r"texts\.jsonl, line 4: wrong_type"):
        list(read_texts(uri))
    with pytest.raises(FileNotFoundError):
        read_texts(str(tmp_path / "none"))


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "steerlm"])
@pytest.mark.parametrize(
    "record",
    [{}, {"prompt": 1, "messages": {}, "conversations": "x", "chosen": [], "context": 0, "message_tree_id": {}}],
)
def test_no_format_raises_on_a_foreign_record(tmp_path: Path, format: str, record: dict[str, Any]) -> None:
    [(line, reason)] = reasons(rows(tmp_path, format, record))
    assert line == 1
    assert reason in ("missing_column", "wrong_type")


def test_real_hh_rlhf_every_dialogue_is_accounted_for() -> None:
    found = list(read(real("hh_rlhf_harmless_test"), "hh_rlhf", SCHEMA))
    assert len(found) == 4624
    assert Counter(reason for _, reason in reasons(found)) == {"roles_do_not_alternate": 13, "empty_message": 4}


def test_real_samples_lose_their_debris_and_two_are_nothing_else() -> None:
    found = list(read(real("oasst_model_eval_20k"), "prompt_output", SCHEMA))
    assert len(found) == 20_000
    assert Counter(reason for _, reason in reasons(found)) == {"empty_message": 2}
    conversations = [r for r in found if isinstance(r, Conversation)]
    assert len({c.group for c in conversations}) == 979
    assert not any(c.messages[-1].content.endswith(("</s>", "<|endoftext|>", "<|im_end|>")) for c in conversations)


def test_real_texts() -> None:
    assert sum(1 for _ in read_texts(real("oasst1_en_train_texts"))) == 39_283
