"""Our files are read by others unchanged: any text, any rating, many turns; what a format cannot carry is counted."""

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.attributes import Attribute, AttributeSchema, shipped
from data.conversation import Conversation, Message, from_table, to_table
from data.exports import RecordFormat, hub_features, left_out, line, record, with_values
from data.formats import messages, nemo
from data.lines import Line
from data.sources import read
from data.storage import Storage
from jobs.pipelines.map_rows import write_table

datasets.disable_progress_bars()
STEERLM = shipped("steerlm")
SCHEMA = AttributeSchema(
    name="odd",
    attributes=(
        *STEERLM.attributes[:3],
        Attribute(name="off_zero", low=-3, high=11, default=0, meaning="Not from zero.", better="neither"),
    ),
)
PARSERS = {"messages": messages, "nemo": nemo}
LOOK_ALIKES = (
    *(
        "<extra_id_0>System\n",
        "<extra_id_1>User\n",
        "<extra_id_2>quality:4,humor:0\n",
        "<|im_start|>system",
        "</s>",
        "<s>",
        "[INST]",
        "<|eot_id|>",
    ),
    *(
        "\n\nHuman: ",
        "\n\nAssistant:",
        "quality:9",
        '", "label": "humor:4',
        "\\u0000",
        "\ufeff",
        "\u2028",
        "\u2029",
        "\x85",
        "\r",
        "\r\n",
        "\x00",
        "\x1b[0m",
        "\x7f",
    ),
)
texts = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(LOOK_ALIKES)), max_size=6
).map("".join)
"""All of Unicode but halves of surrogate pairs, which no UTF-8 file can hold."""


@st.composite
def conversations(draw: st.DrawFn, wild: bool = False) -> Conversation:
    """A row; with `wild` values also outside their scales, as a predictor may say."""
    num_answers = draw(st.integers(1, 5))
    said = draw(st.lists(texts.filter(str.strip), min_size=2 * num_answers, max_size=2 * num_answers))
    turns = tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(said))
    # Single precision, as rows are stored.
    of = {a.name: st.floats(-100.0 if wild else a.low, 100.0 if wild else a.high, width=32) for a in SCHEMA.attributes}
    answer = st.fixed_dictionaries(
        {}, optional={name: st.one_of(st.just(math.nan), values) for name, values in of.items()}
    )
    human = draw(st.lists(answer, min_size=num_answers, max_size=num_answers))
    return Conversation("ours", draw(texts), turns, human=tuple(human), group=draw(texts))


def plain(row: Conversation) -> Conversation:
    """The row with its NaN left out: both mean "not rated"."""
    return row.with_human(
        {name: value for name, value in answer.items() if not math.isnan(value)} for answer in row.human
    )


def as_label(row: Conversation) -> Conversation:
    return row.with_human(
        {name: float(SCHEMA[name].rounded(value)) for name, value in answer.items()} for answer in plain(row).human
    )


def expected(row: Conversation, format: RecordFormat) -> Conversation:
    return as_label(row) if format == "nemo" else plain(row)


def read_back(file: Path, format: RecordFormat) -> list[Any]:
    return list(read(str(file), format, SCHEMA, source="ours"))


def through_datasets(rows: "datasets.Dataset", format: RecordFormat) -> list[Any]:
    return [next(PARSERS[format](Line("hub", i, r), SCHEMA, "ours")) for i, r in enumerate(rows, 1)]


FORMATS = pytest.mark.parametrize("format", ["messages", "nemo"])
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@FORMATS
@PROPERTY
@given(rows=st.lists(conversations(), min_size=1, max_size=4))
def test_a_written_file_reads_back_the_same(format: RecordFormat, rows: list[Conversation]) -> None:
    lost: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.jsonl"
        file.write_bytes(b"".join(line(record(row, SCHEMA, format, lost)) for row in rows))
        assert read_back(file, format) == [expected(row, format) for row in rows]
    whole = [value.is_integer() for row in rows for answer in plain(row).human for value in answer.values()]
    assert lost["values_rounded"] == (whole.count(False) if format == "nemo" else 0)


@FORMATS
@settings(PROPERTY, max_examples=12)
@given(rows=st.lists(conversations(), min_size=1, max_size=4))
def test_hugging_face_datasets_reads_the_same(format: RecordFormat, rows: list[Conversation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.jsonl"
        file.write_bytes(b"".join(line(record(row, SCHEMA, format, Counter())) for row in rows))
        loaded = datasets.load_dataset(
            "json", data_files=str(file), split="train", cache_dir=folder, keep_in_memory=True
        )
        assert through_datasets(loaded, format) == [expected(row, format) for row in rows]


@settings(PROPERTY, max_examples=12)
@given(rows=st.lists(conversations(wild=True), min_size=1, max_size=4))
def test_our_parquet_is_what_datasets_loads(rows: list[Conversation]) -> None:
    """All columns, with values outside their scales; NaN stays NaN."""
    rows = [
        Conversation(
            **vars(r)
            | {"predicted": r.human[::-1], "requested": r.human, "predictor": "p", "truncated": True, "tokens": 7}
        )
        for r in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_table(to_table(rows, SCHEMA), Storage(folder))
        loaded = datasets.load_dataset(
            "parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=f"{folder}/cache", keep_in_memory=True
        )
        assert list(from_table(loaded.with_format("arrow")[:])) == list(from_table(to_table(rows, SCHEMA)))
        assert loaded.column_names == to_table(rows, SCHEMA).column_names


@FORMATS
def test_parts_of_which_the_first_has_no_rating_load_as_the_card_says(format: RecordFormat, tmp_path: Path) -> None:
    turns = (Message("user", "Hi"), Message("assistant", "A"))
    rows = [Conversation("ours", "", turns, human=({},)), Conversation("ours", "S", turns, human=({"humor": 2.0},))]
    for i, row in enumerate(rows):
        (tmp_path / f"part-{i}.jsonl").write_bytes(line(record(row, SCHEMA, format, Counter())))
    front = {
        "configs": [{"config_name": "default", "data_files": "*.jsonl"}],
        "dataset_info": {"features": hub_features(SCHEMA, format)},
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n")
    loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert through_datasets(loaded, format) == rows


@PROPERTY
@given(row=conversations(wild=True))
def test_values_outside_their_scales_are_clipped_and_counted(row: Conversation) -> None:
    lost: Counter[str] = Counter()
    within = with_values(row, row.human, SCHEMA, lost)
    ranges = {a.name: (a.low, a.high) for a in SCHEMA.attributes}
    outside = [
        not ranges[name][0] <= value <= ranges[name][1] for answer in plain(row).human for name, value in answer.items()
    ]
    assert lost["values_clipped"] == outside.count(True)
    clipped = [{n: min(max(v, ranges[n][0]), ranges[n][1]) for n, v in answer.items()} for answer in plain(row).human]
    assert within == row.with_human(clipped)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.jsonl"
        file.write_bytes(line(record(within, SCHEMA, "messages", lost)))
        assert read_back(file, "messages") == [within], "what is written is never refused by our own reader"


def test_what_is_no_conversation_or_has_no_value_is_left_out_by_name() -> None:
    turns = (Message("user", "Hi"), Message("assistant", "A"))
    assert left_out(Conversation("s", "", turns, human=({"humor": 1.0},)), only_rated=True) == ""
    assert left_out(Conversation("s", "", turns, human=({},)), only_rated=True) == "unrated"
    assert left_out(Conversation("s", "", turns), only_rated=False) == ""
    assert left_out(Conversation("s", "", turns[:1]), only_rated=False) == "no_answer"
    assert left_out(Conversation("s", "", (turns[0], Message("assistant", " \n"))), only_rated=False) == "empty_message"


def test_nan_is_never_written() -> None:
    row = Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")), human=({"humor": math.nan},))
    for format in ("messages", "nemo"):
        written = json.loads(line(record(row, SCHEMA, format, Counter())))  # type: ignore[arg-type]
        answer = (written.get("messages") or written["conversations"])[1]
        assert answer.get("attributes") is None
        assert answer.get("label") is None
