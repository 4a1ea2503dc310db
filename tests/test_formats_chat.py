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


def chat(answer: dict[str, Any], user: dict[str, Any] | None = None, **record: Any) -> dict[str, Any]:
    """A chat of two answers; `answer` is added to the last one, `user` to its question."""
    first = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}]
    last = [{"role": "user", "content": "So?"} | (user or {}), {"role": "assistant", "content": "B"} | answer]
    return {"messages": first + last} | record


@pytest.mark.case("14-ratings-beside-messages")
def test_attributes_beside_messages_rate_the_last_answer(tmp_path: Path) -> None:
    [found] = good(rows(tmp_path, "messages", chat({}, attributes={"humor": 4, "quality": None})))
    assert found.human == ({}, {"humor": 4.0})
    [found] = good(rows(tmp_path, "messages", chat({"attributes": {"humor": 1}}, attributes={"humor": None})))
    assert found.human == ({}, {"humor": 1.0})


@pytest.mark.case("14-ratings-beside-messages")
@pytest.mark.parametrize(
    ("format", "record", "named"),
    [
        ("messages", chat({"attributes": {"humor": 1}}, attributes={"humor": 4}), "the record and its last answer"),
        ("messages", chat({}, {"attributes": {"humor": 1}}), "`attributes` of a message that is no assistant's"),
        ("messages", {"prompt": [{"role": "user", "content": "Hi", "attributes": {"x": 1}}], "response": "A"}, "no as"),
        ("messages", chat({}, humor=3), "the record has a rating 'humor'"),
        ("messages", chat({}, Humor=3.5), "the record has a rating 'Humor'"),
        ("messages", chat({"humor": 3}), "a message has a rating 'humor'"),
        ("messages", chat({}, labels={"x": 1, "humor": 3}), "the record has a rating 'humor' in 'labels'"),
        ("messages", chat({"ratings": {"QUALITY": 3}}), "a message has a rating 'QUALITY' in 'ratings'"),
        ("messages", {"prompt": "Hi", "response": "A", "helpfulness": 3}, "the record has a rating 'helpfulness'"),
        ("prompt_output", {"prompt": "Hi", "output": "A", "humor": 3}, "'humor'"),
        ("prompt_output", {"prompt": "Hi", "output": "A", "attributes": {"humor": 3}}, "'humor' in 'attributes'"),
        ("hh_rlhf", {"text": "Human: Hi\n\nAssistant: A", "humor": 3}, "'humor'"),
        ("helpsteer_preference", {"prompt": "Hi", "response_1": "A", "response_2": "B", "quality": 0}, "'quality'"),
        ("helpsteer3", {"context": "Hi", "response1": "A", "response2": "B", "quality": 0}, "'quality'"),
    ],
)
def test_ratings_that_no_reader_looks_for_are_a_rejection_that_names_them(
    tmp_path: Path, format: str, record: dict[str, Any], named: str
) -> None:
    [found] = rows(tmp_path, format, record)
    assert isinstance(found, Rejected)
    assert found.reason == "misplaced_attributes"
    assert named in found.detail


def test_what_only_looks_like_a_rating_is_left_alone(tmp_path: Path) -> None:
    """Nulls (Arrow gives every object all keys), text, flags, and names that are no attribute's."""
    nothing = dict.fromkeys(SCHEMA.names)
    harmless = chat({"quality": None}, {"attributes": nothing}, quality="high", humor=True, score=3, meta={"score": 1})
    assert good(rows(tmp_path, "messages", harmless))[0].human == ({}, {})


def test_ratings_on_another_scale_are_a_rejection_and_not_misread(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "A", "attributes": {"humor": 3}}
    record = {"messages": [{"role": "user", "content": "Q"}, answer]}
    [found] = rows(tmp_path, "messages", record | {"scales": {"humor": [1, 5], "other": [0, 1]}})
    assert isinstance(found, Rejected)
    assert found.reason == "other_scale"
    assert "'humor' was rated on the scale [1, 5], it has [0, 4]" in found.detail
    for scales in ({"humor": [0, 4], "other": [0, 1]}, {"humor": "plain"}, {}, None, "minor"):
        [row] = good(rows(tmp_path, "messages", record | {"scales": scales}))
        assert row.human == ({"humor": 3.0},)


@pytest.mark.case("14-ratings-beside-messages")
def test_a_users_label_is_a_rejection(tmp_path: Path) -> None:
    turns = [{"from": "User", "value": "Hi", "label": "quality:4"}, {"from": "Assistant", "value": "A"}]
    assert reasons(rows(tmp_path, "nemo", {"conversations": turns})) == [(1, "misplaced_attributes")]


@pytest.mark.case("16-weight-0")
@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (chat({"weight": 0}), "answers_masked"),
        (chat({"weight": 0.0, "attributes": {"humor": 1}}), "answers_masked"),
        (chat({"weight": False}), "answers_masked"),
        (chat({}, weight=0), "answers_masked"),
        ({"prompt": "Hi", "response": "A", "weight": 0}, "answers_masked"),
        (chat({"weight": 0.5}), "wrong_type"),
        (chat({"weight": "0"}), "wrong_type"),
    ],
)
def test_an_answer_that_is_not_meant_for_training_is_no_row(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    assert reasons(rows(tmp_path, "messages", record)) == [(1, reason)]


@pytest.mark.case("16-weight-0")
def test_a_weight_of_1_or_none_is_a_row_and_a_users_weight_says_nothing(tmp_path: Path) -> None:
    assert len(good(rows(tmp_path, "messages", chat({"weight": 1}, {"weight": 0}), chat({"weight": None})))) == 2


@pytest.mark.case("C14: ShareGPT")
def test_sharegpt_is_read_by_nemo_and_named_elsewhere(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "A"},
    ]
    [found] = good(rows(tmp_path, "nemo", {"id": "x", "conversations": turns}))
    assert (found.system, found.messages) == ("S", (Message("user", "Hi"), Message("assistant", "A")))
    for record, sentence in (
        ({"conversations": turns}, "`conversations` (ShareGPT, NeMo) is read by format nemo"),
        ({"messages": turns}, "turns of ShareGPT or NeMo are read by format nemo"),
        (
            {"messages": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "A"}]},
            "human, gpt; roles are user",
        ),
    ):
        [refused] = rows(tmp_path, "messages", record)
        assert isinstance(refused, Rejected)
        assert sentence in refused.detail
