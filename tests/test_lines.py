"""Records of a line: keys that come twice, arrays, joined and nested objects, and what of it reaches a message."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from support.source_rows import SCHEMA, good, helpsteer, reasons, rows, write

from data.conversation import Rejected
from data.lines import MAX_MESSAGES, MAX_RATINGS, lines, misspelled
from data.sources import read, read_texts
from data.trees import MAX_TREE_MESSAGES

SOUND = json.dumps(helpsteer())


def rejected(tmp_path: Path, format: str, record: Any) -> Rejected:
    [found] = rows(tmp_path, format, record)
    assert isinstance(found, Rejected), found
    assert found.detail.isprintable()
    assert len(found.detail) <= 400
    return found


def answered(answer: dict[str, Any], **record: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"} | answer]} | record


@pytest.mark.case("18-duplicate-keys")
@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"messages": [{"role": "user", "content": "1"}], "messages": []}', "messages"),
        ('{"messages": [{"role": "user", "content": "1", "content": "2"}]}', "content"),
        ('{"prompt": "Hi", "response": "A", "attributes": {"humor": 1, "quality": 2, "humor": 4}}', "humor"),
        (r'{"prompt": "Hi", "response": "A", "a\u001b": 1, "a\u001b": 2}', r"a\\x1b"),
        ('{"prompt": "Hi", "response": "A", "else": [{"x": {"y": 1, "y": 1}}]}', "y"),
    ],
)
def test_a_key_that_is_there_twice_rejects_the_line(tmp_path: Path, line: str, key: str) -> None:
    found = rejected(tmp_path, "messages", line)
    assert found.reason == "duplicate_key"
    assert f"key '{key}' is there twice" in found.detail


@pytest.mark.case("18-duplicate-keys")
def test_a_name_that_is_there_twice_in_a_label_rejects_the_record(tmp_path: Path) -> None:
    turns = [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "A", "label": "quality:4,quality:0"}]
    assert rejected(tmp_path, "nemo", {"conversations": turns}).detail == (
        "label has 'quality' twice, one value would be lost"
    )
    labels = {"name": ["humor", "humor"], "value": [0.5, 1], "count": [1, 1]}
    tree = {"message_id": "1", "parent_id": None, "message_tree_id": "t", "role": "prompter", "text": "u"}
    answer = tree | {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "labels": labels}
    assert (2, "duplicate_key") in reasons(rows(tmp_path, "oasst_messages", tree, answer))


@pytest.mark.case("29-json-array")
@pytest.mark.parametrize(
    "content",
    [f"[{SOUND}, {SOUND}]", f"[\n{SOUND},\n{SOUND}\n]", f" [ {SOUND},\n{SOUND}]", f"\ufeff[\r\n{SOUND}]", "[]"],
)
def test_one_json_array_is_one_rejection_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    [found] = lines(str(tmp_path / "x.json"))
    assert isinstance(found, Rejected)
    assert (found.line, found.reason) == (1, "broken_file")
    assert "jq -c '.[]' FILE > NEW.jsonl" in found.detail


@pytest.mark.case("29-json-array")
@pytest.mark.parametrize("content", [SOUND + SOUND, f"{SOUND} {SOUND}\n", json.dumps(helpsteer(), indent=1)])
def test_objects_that_share_or_span_lines_say_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    [found, *_] = lines(str(tmp_path / "x.json"))
    assert isinstance(found, Rejected)
    assert found.reason == "broken_json"
    assert "`jq -c . FILE > NEW.jsonl`" in found.detail


def test_an_array_among_records_ends_nothing(tmp_path: Path) -> None:
    assert reasons(rows(tmp_path, "helpsteer", [1, 2], helpsteer(), [helpsteer()], helpsteer("How?"))) == [
        (1, "wrong_type"),
        (3, "wrong_type"),
    ]


@pytest.mark.case("B11: escapes in a message")
@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("messages", {"\x1b]0;owned\x07\n" * 100: 1}),
        ("messages", {"messages": [{"role": "user", "content": "Hi"}, {"role": "\x1b[2J\n" * 999, "content": "A"}]}),
        ("messages", answered({"attributes": {"humo\u202er": 1}})),
        ("messages", answered({"weight": "\x1b" * 999})),
        ("messages", answered({"\x07metadata": {"humor": 1}})),
        ("nemo", {"conversations": [{"from": "Assistant\n" * 99, "value": "A"}]}),
        ("nemo", {"conversations": [{"from": "Assistant", "value": "A", "label": "\x1b" * 999}]}),
        ("hh_rlhf", {"text": "\x1b]0;\n" * 99}),
        ("oasst_trees", {"message_tree_id": "t", "prompt": {"role": "\x1b\n" * 99, "text": "u"}}),
        ("helpsteer", "{" + '"\\u001b": 1, ' * 2 + "}"),
        ("messages", {"a, b" * 10_000: 1} | {str(i): i for i in range(9999)}),
        ("messages", {"\ud83d": 1}),
    ],
)
def test_what_strangers_wrote_reaches_a_message_escaped_and_cut(
    tmp_path: Path, format: str, record: dict[str, Any]
) -> None:
    rejected(tmp_path, format, record)


@pytest.mark.case("B12: depth")
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_depth_is_a_rejection(tmp_path: Path, opening: str) -> None:
    found = rows(tmp_path, "messages", helpsteer(), '{"messages": ' + opening * 200_000, answered({}))
    assert reasons(found)[-1] == (2, "broken_json")
    assert isinstance(found[1], Rejected)
    assert found[1].detail == "the record is nested too deeply, some hundred levels are read"


@pytest.mark.case("B12: a number of messages")
@pytest.mark.parametrize("format", ["messages", "nemo", "hh_rlhf", "oasst_messages"])
def test_a_conversation_of_too_many_messages_is_rejected_at_once(tmp_path: Path, format: str) -> None:
    number = range(MAX_MESSAGES + 1)
    if format == "messages":
        records: list[dict[str, Any]] = [
            {"messages": [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in number]}
        ]
    elif format == "nemo":
        records = [{"conversations": [{"from": ("User", "Assistant")[i % 2], "value": "x"} for i in number]}]
    elif format == "hh_rlhf":
        records = [{"text": "\n\nHuman: x\n\nAssistant: x" * MAX_MESSAGES}]
    else:
        roles = ("prompter", "assistant")
        records = [
            {"message_tree_id": "t", "message_id": str(i), "role": roles[i % 2], "text": "x"}
            | {"parent_id": str(i - 1) if i else None}
            for i in number
        ]
    assert "too_many_messages" in {reason for _, reason in reasons(rows(tmp_path, format, *records))}


@pytest.mark.case("B12: a deep tree with many leaves")
def test_the_paths_of_one_tree_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.trees.MAX_TREE_MESSAGES", 50)
    node = {"message_tree_id": "t", "role": "prompter", "text": "u", "message_id": "0", "parent_id": None}
    leaves = [node | {"role": "assistant", "text": "a", "message_id": f"l{i}", "parent_id": "0"} for i in range(40)]
    found = rows(tmp_path, "oasst_messages", node, *leaves)
    assert [reason for _, reason in reasons(found)] == ["too_many_messages"] * 15
    assert len(found) == 40
    assert MAX_TREE_MESSAGES > 100 * MAX_MESSAGES // 2


@pytest.mark.case("B12: a number of ratings")
def test_an_answer_with_very_many_ratings_is_rejected(tmp_path: Path) -> None:
    many = {f"humor{i}": 1 for i in range(200_000)}
    assert rejected(tmp_path, "messages", answered({"attributes": many})).reason == "too_many_ratings"
    few = {f"x{i}": 1 for i in range(MAX_RATINGS - 1)}
    assert good(rows(tmp_path, "messages", answered({"attributes": few | {"humor": 1}})))[0].human == ({"humor": 1.0},)


@pytest.mark.case("15-names-in-capitals")
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[("HELPFULNESS", "helpfulness"), ("helpful", "helpfulness"), ("Help-Fulness", "helpfulness")],
        *[("helpfullness", "helpfulness"), ("humour", "humor"), ("Humor_", "humor"), ("ｈｕｍｏｒ", "humor")],
        *[("toxic", "toxicity"), ("verbosity_score", "verbosity")],
        *[("hum", ""), ("spam", ""), ("violence", ""), ("helpfulness" * 9, ""), ("", "")],
    ],
)
def test_names_that_are_nearly_right(name: str, meant: str) -> None:
    assert misspelled(name, SCHEMA.names, SCHEMA.names) == meant


@pytest.mark.case("15-names-in-capitals")
def test_a_name_in_capitals_beside_the_right_one_is_no_second_value(tmp_path: Path) -> None:
    both = answered({"attributes": {"humor": 1, "HUMOR": 4}})
    assert rejected(tmp_path, "messages", both).reason == "misspelled_attribute"


def test_half_a_surrogate_in_a_key_or_text_is_a_rejection(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.jsonl", r'{"text": "\ud83d"}')
    with pytest.raises(ValueError, match="column 'text' holds half a surrogate pair at 0"):
        list(read_texts(uri))


@pytest.mark.case("B12: a poison row")
def test_a_poison_row_costs_less_than_sound_rows_of_5_mb(tmp_path: Path) -> None:
    """16,131 answers in a MiB, and the worst that 8 MiB can hold: names to compare, objects, and one deep list.

    Sound rows of 5 MB take a second or less (an EPYC: .8 s): the bound is that second, on any machine.
    """
    chat = [{"role": role, "content": "x"} for _ in range(16_131) for role in ("user", "assistant")]
    names = answered({"attributes": {f"humo{i}": 1 for i in range(300_000)}})
    sound = json.dumps({"messages": chat[:20]}) + "\n"
    (tmp_path / "sound.jsonl").write_text(sound * (5_000_000 // len(sound)))
    _, second = _read(str(tmp_path / "sound.jsonl"))
    for record, reason in (
        ({"messages": chat}, "too_many_messages"),
        (names, "too_many_ratings"),
        ({"messages": [{}] * 1_000_000}, "too_many_messages"),
        ('{"messages": ' + "[" * 8_000_000, "broken_json"),
    ):
        [found], took = _read(write(tmp_path / "x.jsonl", record))
        assert isinstance(found, Rejected)
        assert found.reason == reason
        assert took < second, reason


def _read(file: str) -> tuple[list[Any], float]:
    """What is in it, and the CPU seconds that reading took."""
    started = time.process_time()
    found = list(read(file, "messages", SCHEMA))
    return found, time.process_time() - started
