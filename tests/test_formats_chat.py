"""Formats of messages, sound and broken: `messages`, `prompt_output` and NeMo-Aligner's, read and written."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.source_rows import SCHEMA, good, reasons, rows, turns, write

from data.conversation import Conversation, Message, Rejected, to_table
from data.formats import without_debris
from data.sources import read, to_messages, to_nemo


def test_messages_with_system_and_ratings(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?", "attributes": {"humor": 1.25, "toxicity": None, "unknown": 7}},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
        ],
        "group": "g",
    }
    [found] = good(rows(tmp_path, "messages", record))
    assert (found.system, found.group) == ("Be kind.", "g")
    assert found.human == ({"humor": 1.25}, {})


def test_prompt_and_response_columns(tmp_path: Path) -> None:
    listed = {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        "response": "A",
        "attributes": {"humor": 2},
    }
    plain = {"prompt": "Hi\n<extra_id_1>Assistant\nno marker here", "response": "A"}
    a, b = good(rows(tmp_path, "messages", listed, plain))
    assert (a.system, a.human) == ("S", ({"humor": 2.0},))
    assert turns(b) == [("user", plain["prompt"]), ("assistant", "A")]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no_messages"),
        ("Hi", "wrong_type"),
        (["Hi"], "wrong_type"),
        ([{"role": "user"}], "missing_column"),
        ([{"role": ["user"], "content": "Hi"}], "wrong_type"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}], "wrong_type"),
        ([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "A"}], "unknown_role"),
        ([{"role": "user", "content": "Hi"}, {"role": "system", "content": "A"}], "unknown_role"),
        ([{"role": "user", "content": "Hi"}], "no_answer"),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "attributes": {"humor": 9}}],
            "rating_out_of_range",
        ),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "attributes": {"humour": 3}}],
            "misspelled_attribute",
        ),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "attributes": [1]}], "wrong_type"),
    ],
)
def test_bad_messages(tmp_path: Path, messages: Any, reason: str) -> None:
    assert reasons(rows(tmp_path, "messages", {"messages": messages})) == [(1, reason)]


@pytest.mark.parametrize(
    "content",
    [
        "👩‍👩‍👧 שלום مرحبا \u202eabc",
        "bell \x07 nul \x00 vt \x0b",
        "a\u2028b\rc\x85d",
        "x" * 100_000,
        "<extra_id_2>humor:4",
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_text_comes_through_unchanged(tmp_path: Path, content: str, ascii_only: bool) -> None:
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": content}]}
    [found] = good(rows(tmp_path, "messages", json.dumps(record, ensure_ascii=ascii_only)))
    assert turns(found) == [("user", content), ("assistant", content)]
    assert to_table([found], SCHEMA).num_rows == 1


def test_messages_round_trip(tmp_path: Path) -> None:
    first = Conversation(
        "s", "Sys", (Message("user", "Hi"), Message("assistant", "A")), human=({"humor": 1 / 3},), group="g"
    )
    second = Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")), human=({},))
    uri = write(tmp_path / "out.jsonl", to_messages(first, SCHEMA), to_messages(second, SCHEMA))
    assert list(read(uri, "messages", SCHEMA, source="s")) == [first, second]


def test_what_was_predicted_is_written_only_on_request() -> None:
    both = Conversation(
        "s",
        "",
        (Message("user", "Hi"), Message("assistant", "A")),
        human=({"humor": 1.0},),
        predicted=({"humor": 2.6, "toxicity": -1},),
    )
    nothing = dict.fromkeys(SCHEMA.names)
    assert to_messages(both, SCHEMA)["messages"][1]["attributes"] == nothing | {"humor": 1.0}
    assert to_messages(both, SCHEMA, "predicted")["messages"][1]["attributes"] == nothing | {
        "humor": 2.6,
        "toxicity": -1,
    }
    assert to_messages(both, SCHEMA)["messages"][0]["attributes"] is None
    assert to_nemo(both, SCHEMA, "predicted")["conversations"][1]["label"] == "toxicity:0,humor:3"


def test_sampler_debris_is_cut_off_the_end_only() -> None:
    assert without_debris(" Say </s> twice.\n<|im_end|></s> </s>\n") == "Say </s> twice."
    assert without_debris("<|prefix_begin|>" * 5) == ""
    assert len(without_debris(" " * 1_000_000 + "x" + " " * 1_000_000 + "</s>")) == 1


def test_prompt_output(tmp_path: Path) -> None:
    a, b, c = rows(
        tmp_path, "prompt_output", *({"prompt": "Hi", "output": o} for o in (" A</s>", "B<|endoftext|>", "</s>"))
    )
    assert isinstance(a, Conversation)
    assert isinstance(b, Conversation)
    assert [a.messages[-1].content, b.messages[-1].content] == ["A", "B"]
    assert a.group == b.group
    assert isinstance(c, Rejected)
    assert c.reason == "empty_message"


def nemo(*labels: Any, **more: Any) -> dict[str, Any]:
    """A conversation with one answer a label; `...` leaves the label out."""
    said = [
        [
            {"from": "User", "value": "Hi", "label": None},
            {"from": "Assistant", "value": "A"} | ({} if x is ... else {"label": x}),
        ]
        for x in labels
    ]
    return {
        "system": "S",
        "mask": "User",
        "type": "VALUE_TO_TEXT",
        "conversations": [turn for pair in said for turn in pair],
    } | more


def test_nemo_labels(tmp_path: Path) -> None:
    [found] = good(rows(tmp_path, "nemo", nemo("quality:4,humor:0,unknown:9", None, "", ..., "quality:2.5")))
    assert found.human == ({"quality": 4.0, "humor": 0.0}, {}, {}, {}, {"quality": 2.5})
    assert found.system == "S"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (nemo("quality"), "broken_label"),
        (nemo("quality:high"), "broken_label"),
        (nemo("quality:5"), "rating_out_of_range"),
        (nemo(4), "wrong_type"),
        (nemo(None, mask="User,Assistant"), "answers_masked"),
        (nemo(None, conversations=None), "wrong_type"),
        (nemo(None, conversations=[{"from": "Narrator", "value": "Hi"}]), "unknown_role"),
        ({"system": "S"}, "missing_column"),
    ],
)
def test_bad_nemo_records(tmp_path: Path, record: Any, reason: str) -> None:
    assert reasons(rows(tmp_path, "nemo", record)) == [(1, reason)]


def test_nemo_round_trip(tmp_path: Path) -> None:
    written = nemo("quality:4,humor:0", None)
    [found] = good(rows(tmp_path, "nemo", written))
    origin = {"id": found.id, "source": found.source, "group": found.group}
    assert to_nemo(found, SCHEMA) == written | origin | {
        "conversations": [{"label": None} | turn for turn in written["conversations"]]
    }
    [again] = good(rows(tmp_path, "nemo", to_nemo(found, SCHEMA)))
    assert again == found
    assert to_nemo(found.with_human([{"humor": 2.5}, {"humor": 3.5}]), SCHEMA)["conversations"][1]["label"] == "humor:2"
