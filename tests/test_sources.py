"""Every public format, whole and broken: rows come out, faults come out as rejections with a line and a reason, and nothing is lost between.

The tests on real rows need the folder named by STEERLM_REAL_DATA (default `../shared/data` beside the repository).
"""

import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.attributes import AttributeSchema, SchemaMismatch, shipped
from data.conversation import Conversation, Message, Rejected, content_id, to_table
from data.formats import without_debris
from data.lines import Row, files_of
from data.sources import FORMATS, read, read_texts, to_messages, to_nemo

SCHEMA = shipped("steerlm")
HELPSTEER = shipped("helpsteer")
RATED = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 0}
REAL = Path(os.environ.get("STEERLM_REAL_DATA") or Path(__file__).parents[1] / "../shared/data")


def write(path: Path, *records: Any) -> str:
    """A JSONL file of `records`; bytes and strings go in as they stand."""
    encoded = [r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else json.dumps(r).encode() for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return str(path)


def rows(tmp_path: Path, format: str, *records: Any, schema: AttributeSchema = SCHEMA) -> list[Row]:
    return list(read(write(tmp_path / "rows.jsonl", *records), format, schema))


def good(found: list[Row]) -> list[Conversation]:
    rejected = [r for r in found if isinstance(r, Rejected)]
    assert not rejected
    return [r for r in found if isinstance(r, Conversation)]


def reasons(found: list[Row]) -> list[tuple[int, str]]:
    return [(r.line, r.reason) for r in found if isinstance(r, Rejected)]


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


def helpsteer(prompt: Any = "Why?", response: Any = "Because.", **ratings: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, **RATED, **ratings}


def oasst(id: str, parent: str | None, text: str, tree: str = "t", deleted: bool = False, **labels: float | None) -> dict[str, Any]:
    """A message of a message list; prompters and assistants take turns in `text`: "u..." is the prompter's."""
    names = list(labels)
    return {
        "message_id": id,
        "parent_id": parent,
        "message_tree_id": tree,
        "text": text,
        "role": "prompter" if text.startswith("u") else "assistant",
        "deleted": deleted,
        "labels": {"name": names, "value": [labels[n] for n in names], "count": [3] * len(names)} if labels else None,
    }


def as_trees(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, a tree a line, as the other OASST files have them; messages without their parent are left out."""
    nodes = {}
    for message in messages:
        labels = message["labels"] and {
            n: {"value": v, "count": c} for n, v, c in zip(*(message["labels"][k] for k in ("name", "value", "count")), strict=True)
        }
        nodes[message["message_id"]] = message | {"labels": labels, "replies": []}
    for node in nodes.values():
        if node["parent_id"] in nodes:
            nodes[node["parent_id"]]["replies"].append(node)
    return [{"message_tree_id": n["message_tree_id"], "prompt": n} for n in nodes.values() if n["parent_id"] is None]


# HelpSteer and pairs


def test_helpsteer_rates_the_answer(tmp_path: Path) -> None:
    [found] = good(rows(tmp_path, "helpsteer", helpsteer()))
    assert turns(found) == [("user", "Why?"), ("assistant", "Because.")]
    assert found.human == ({k: float(v) for k, v in RATED.items()},)
    assert found.source == "helpsteer"


def test_helpsteer2_earlier_turns_are_parsed_out_of_the_prompt(tmp_path: Path) -> None:
    prompt = "Hi\nthere\n<extra_id_1>Assistant\nYes?\n\n<extra_id_1>User\nWhy <extra_id_1> though?"
    [found] = good(rows(tmp_path, "helpsteer", helpsteer(prompt)))
    assert turns(found) == [("user", "Hi\nthere"), ("assistant", "Yes?\n"), ("user", "Why <extra_id_1> though?"), ("assistant", "Because.")]
    assert found.human[0] == {}
    assert found.human[1]["helpfulness"] == 3


def test_a_marker_before_the_first_turn_too_is_no_empty_turn(tmp_path: Path) -> None:
    [found] = good(rows(tmp_path, "helpsteer", helpsteer("<extra_id_1>User\nHi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?")))
    assert [role for role, _ in turns(found)] == ["user", "assistant", "user", "assistant"]


def test_samples_of_a_prompt_share_their_group_and_no_other_has_it(tmp_path: Path) -> None:
    a, b, other = good(rows(tmp_path, "helpsteer", helpsteer(), helpsteer(response="No."), helpsteer("How?")))
    assert a.group == b.group != other.group
    assert a.id != b.id


def test_likert_ratings_are_mapped_to_the_range_of_the_schema(tmp_path: Path) -> None:
    [found] = good(rows(tmp_path, "helpsteer", helpsteer(helpfulness=2), schema=shipped("steerlm_paper")))
    assert found.human == ({"helpfulness": 4.5},)


@pytest.mark.parametrize("value", [None, math.nan])
def test_null_and_nan_are_unrated(tmp_path: Path, value: float | None) -> None:
    [found] = good(rows(tmp_path, "helpsteer", helpsteer(humor=value, helpfulness=value)))
    assert "helpfulness" not in found.human[0]
    assert found.human[0]["correctness"] == 4


@pytest.mark.parametrize("value", [5, -1, math.inf, 10**400])
def test_a_rating_out_of_range_rejects_the_row_and_says_which(tmp_path: Path, value: float) -> None:
    [found] = rows(tmp_path, "helpsteer", helpsteer(verbosity=value))
    assert isinstance(found, Rejected)
    assert found.reason == "rating_out_of_range"
    assert "'verbosity' is " + str(value)[:20] in found.detail
    assert "0 to 4" in found.detail


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"prompt": "Why?", "resp', "broken_json"),
        ("[" * 100_000, "broken_json"),
        (b'{"prompt": "\xff\xfe"}', "invalid_utf8"),
        (r'{"prompt": "half a pair \ud83d", "response": "x"}', "invalid_utf8"),
        ([1, 2], "wrong_type"),
        ({"prompt": "Why?"}, "missing_column"),
        ({"prompt": "Why?", "response": "Because."}, "missing_column"),
        (helpsteer(response=None), "wrong_type"),
        (helpsteer(prompt=["Why?"]), "wrong_type"),
        (helpsteer(helpfulness="4"), "wrong_type"),
        (helpsteer(helpfulness=True), "wrong_type"),
        (helpsteer(response=" \n\t"), "empty_message"),
        (helpsteer(prompt="Hi\n<extra_id_1>User\nWhy?"), "roles_do_not_alternate"),
    ],
)
def test_a_bad_line_is_rejected_and_its_neighbours_are_not(tmp_path: Path, record: Any, reason: str) -> None:
    found = rows(tmp_path, "helpsteer", helpsteer(), "", record, helpsteer("How?"))
    assert [type(r) for r in found] == [Conversation, Rejected, Conversation]
    assert reasons(found) == [(3, reason)]
    assert isinstance(found[1], Rejected)
    assert found[1].file.endswith("rows.jsonl")
    assert found[1].detail


def test_every_answer_of_a_pair_is_a_conversation_without_ratings(tmp_path: Path) -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?"
    pair = {"prompt": prompt, "response_1": "A.", "response_2": "B.", "preference_strength": 2}
    a, b = good(rows(tmp_path, "helpsteer_preference", pair))
    assert [a.messages[-1].content, b.messages[-1].content] == ["A.", "B."]
    assert len(a.messages) == 4
    assert a.group == b.group
    assert a.human == ({}, {})


def test_helpsteer3_context_is_messages_or_text(tmp_path: Path) -> None:
    context = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Why?"}]
    pair = {"context": context, "response1": "A.", "response2": "B."}
    a, b, c, d = good(rows(tmp_path, "helpsteer3", pair, pair | {"context": "Hi"}))
    assert turns(a)[:3] == turns(b)[:3] == [(m["role"], m["content"]) for m in context]
    assert turns(c) == [("user", "Hi"), ("assistant", "A.")]
    assert a.group == b.group
    assert c.group == d.group


def test_half_a_pair_survives_its_other_half(tmp_path: Path) -> None:
    found = rows(tmp_path, "helpsteer3", {"context": "Hi", "response1": "", "response2": "B."})
    assert reasons(found) == [(1, "empty_message")]
    assert isinstance(found[1], Conversation)


# hh-rlhf


def test_hh_rlhf_has_two_dialogues_a_line(tmp_path: Path) -> None:
    pair = {"chosen": "\n\nHuman: Hi\n\nyou\n\nAssistant: Human: no\n\nHuman:  So\n\nAssistant: A.", "rejected": "\n\nHuman: Hi\n\nyou\n\nAssistant: B."}
    chosen, rejected = good(rows(tmp_path, "hh_rlhf", pair))
    assert turns(chosen) == [("user", "Hi\n\nyou"), ("assistant", "Human: no"), ("user", " So"), ("assistant", "A.")]
    assert turns(rejected) == [("user", "Hi\n\nyou"), ("assistant", "B.")]
    assert chosen.group == rejected.group


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        ("\n\nHuman: Hi", "no_answer"),
        ("\n\nHuman: Hi\n\nAssistant: ", "empty_message"),
        ("\n\nHuman: Hi\n\nAssistant: A\n\nAssistant: B", "roles_do_not_alternate"),
        ("\n\nAssistant: Hi", "roles_do_not_alternate"),
        ("A title\n\nHuman: Hi\n\nAssistant: A", "text_before_first_turn"),
        ("no turns", "text_before_first_turn"),
        ("", "no_messages"),
    ],
)
def test_a_broken_dialogue(tmp_path: Path, dialogue: str, reason: str) -> None:
    found = rows(tmp_path, "hh_rlhf", {"text": dialogue}, {"text": "Human: Hi\n\nAssistant: A"}, {"else": 1})
    assert reasons(found) == [(1, reason), (3, "missing_column")]


# messages, prompt_output, nemo


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
    listed = {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}], "response": "A", "attributes": {"humor": 2}}
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
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "attributes": {"humor": 9}}], "rating_out_of_range"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "attributes": {"humour": 3}}], "misspelled_attribute"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A", "attributes": [1]}], "wrong_type"),
    ],
)
def test_bad_messages(tmp_path: Path, messages: Any, reason: str) -> None:
    assert reasons(rows(tmp_path, "messages", {"messages": messages})) == [(1, reason)]


@pytest.mark.parametrize("content", ["👩‍👩‍👧 שלום مرحبا \u202eabc", "bell \x07 nul \x00 vt \x0b", "a\u2028b\rc\x85d", "x" * 100_000, "<extra_id_2>humor:4"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_text_comes_through_unchanged(tmp_path: Path, content: str, ascii_only: bool) -> None:
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": content}]}
    [found] = good(rows(tmp_path, "messages", json.dumps(record, ensure_ascii=ascii_only)))
    assert turns(found) == [("user", content), ("assistant", content)]
    assert to_table([found], SCHEMA).num_rows == 1


def test_messages_round_trip(tmp_path: Path) -> None:
    first = Conversation("s", "Sys", (Message("user", "Hi"), Message("assistant", "A")), human=({"humor": 1 / 3},), group="g")
    second = Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")), human=({},))
    uri = write(tmp_path / "out.jsonl", to_messages(first, SCHEMA), to_messages(second, SCHEMA))
    assert list(read(uri, "messages", SCHEMA, source="s")) == [first, second]


def test_what_was_predicted_is_written_only_on_request() -> None:
    both = Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")), human=({"humor": 1.0},), predicted=({"humor": 2.6, "toxicity": -1},))
    nothing = dict.fromkeys(SCHEMA.names)
    assert to_messages(both, SCHEMA)["messages"][1]["attributes"] == nothing | {"humor": 1.0}
    assert to_messages(both, SCHEMA, "predicted")["messages"][1]["attributes"] == nothing | {"humor": 2.6, "toxicity": -1}
    assert to_messages(both, SCHEMA)["messages"][0]["attributes"] is None
    assert to_nemo(both, SCHEMA, "predicted")["conversations"][1]["label"] == "toxicity:0,humor:3"


def test_sampler_debris_is_cut_off_the_end_only() -> None:
    assert without_debris(" Say </s> twice.\n<|im_end|></s> </s>\n") == "Say </s> twice."
    assert without_debris("<|prefix_begin|>" * 5) == ""
    assert len(without_debris(" " * 1_000_000 + "x" + " " * 1_000_000 + "</s>")) == 1


def test_prompt_output(tmp_path: Path) -> None:
    a, b, c = rows(tmp_path, "prompt_output", *({"prompt": "Hi", "output": o} for o in (" A</s>", "B<|endoftext|>", "</s>")))
    assert isinstance(a, Conversation)
    assert isinstance(b, Conversation)
    assert [a.messages[-1].content, b.messages[-1].content] == ["A", "B"]
    assert a.group == b.group
    assert isinstance(c, Rejected)
    assert c.reason == "empty_message"


def nemo(*labels: Any, **more: Any) -> dict[str, Any]:
    """A conversation with one answer a label; `...` leaves the label out."""
    said = [[{"from": "User", "value": "Hi", "label": None}, {"from": "Assistant", "value": "A"} | ({} if x is ... else {"label": x})] for x in labels]
    return {"system": "S", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": [turn for pair in said for turn in pair]} | more


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
    assert to_nemo(found, SCHEMA) == written | origin | {"conversations": [{"label": None} | turn for turn in written["conversations"]]}
    [again] = good(rows(tmp_path, "nemo", to_nemo(found, SCHEMA)))
    assert again == found
    assert to_nemo(found.with_human([{"humor": 2.5}, {"humor": 3.5}]), SCHEMA)["conversations"][1]["label"] == "humor:2"


# Open Assistant


def test_every_answer_is_rated_exactly_once(tmp_path: Path) -> None:
    messages = [
        oasst("1", None, "u1", humor=1.0),
        oasst("2", "1", "a2", humor=0.5),
        oasst("3", "2", "u3"),
        oasst("4", "3", "a4", humor=0.25, spam=0.0),
        oasst("5", "3", "a5", humor=1.0),
        oasst("6", "2", "u6"),  # nobody answered: brings no new answer
        oasst("7", "1", "a7", humor=0.0),
        oasst("8", "7", "u8"),  # cut back to a7
    ]
    expected = [
        ([("user", "u1"), ("assistant", "a2"), ("user", "u3"), ("assistant", "a4")], ({"humor": 2.0}, {"humor": 1.0})),
        ([("user", "u1"), ("assistant", "a2"), ("user", "u3"), ("assistant", "a5")], ({}, {"humor": 4.0})),
        ([("user", "u1"), ("assistant", "a7")], ({"humor": 0.0},)),
    ]
    found = good(rows(tmp_path, "oasst_messages", *messages))
    assert [(turns(c), c.human) for c in found] == expected
    assert {c.group for c in found} == {"t"}
    assert [(turns(c), c.human) for c in good(rows(tmp_path, "oasst_trees", *as_trees(messages)))] == expected


def test_labels_are_floats_of_the_schema_range_never_rounded(tmp_path: Path) -> None:
    messages = [oasst("1", None, "u1"), oasst("2", "1", "a2", humor=0.625, violence=1 / 3, toxicity=None)]
    messages[1]["labels"]["name"].append("creativity")
    messages[1]["labels"]["value"].append(1.0)
    messages[1]["labels"]["count"].append(0)
    assert good(rows(tmp_path, "oasst_messages", *messages))[0].human == ({"humor": 2.5},)
    [paper] = good(rows(tmp_path, "oasst_trees", *as_trees(messages), schema=shipped("steerlm_paper")))
    assert paper.human == ({"humor": 5.625, "violence": 3.0},)


def test_trees_may_be_interleaved_and_children_stand_before_parents(tmp_path: Path) -> None:
    messages = [oasst("2", "1", "a2"), oasst("y", "x", "ay", tree="s"), oasst("1", None, "u1"), oasst("x", None, "ux", tree="s")]
    assert [c.group for c in good(rows(tmp_path, "oasst_messages", *messages))] == ["t", "s"]


def test_every_bad_message_is_rejected_under_its_own_name(tmp_path: Path) -> None:
    messages = [
        oasst("1", None, "u1"),
        oasst("2", "1", "a2", humor=0.5),
        oasst("3", "1", "a3", deleted=True),
        oasst("4", "3", "u4"),
        oasst("5", "gone", "a5"),
        oasst("6", "1", "a6", humor=1.5),
        oasst("7", "2", "a7"),
        oasst("8", "1", "a8") | {"text": " "},
        oasst("9", "1", "a9") | {"role": "tool"},
        oasst("2", "1", "a2"),
        oasst("", None, "u0"),
        oasst("b", "c", "ub"),
        oasst("c", "b", "ac"),
        oasst("d", None, "ud", tree="unanswered"),
        oasst("e", "1", "ae") | {"labels": {"name": ["humor"], "value": []}},
        oasst("f", "1", "af") | {"text": 7},
    ]
    found = rows(tmp_path, "oasst_messages", *messages)
    assert [turns(c) for c in found if isinstance(c, Conversation)] == [[("user", "u1"), ("assistant", "a2")]]
    assert sorted(reasons(found)) == [
        (3, "deleted"),
        (4, "rejected_parent"),
        (5, "missing_parent"),
        (6, "rating_out_of_range"),
        (7, "roles_do_not_alternate"),
        (8, "empty_message"),
        (9, "unknown_role"),
        (10, "duplicate_message"),
        (11, "missing_column"),
        (12, "rejected_parent"),
        (13, "rejected_parent"),
        (14, "no_answer"),
        (15, "wrong_type"),
        (16, "wrong_type"),
    ]


def test_a_tree_with_a_broken_shape_is_rejected_whole(tmp_path: Path) -> None:
    whole = as_trees([oasst("1", None, "u1"), oasst("2", "1", "a2")])[0]
    found = rows(
        tmp_path, "oasst_trees", {"prompt": whole["prompt"]}, {"message_tree_id": "t"}, whole | {"prompt": {**whole["prompt"], "replies": ["a2"]}}, whole
    )
    assert reasons(found) == [(1, "missing_column"), (2, "missing_column"), (3, "wrong_type")]
    assert isinstance(found[3], Conversation)


def test_a_very_deep_tree_needs_no_recursion(tmp_path: Path) -> None:
    depth = 3000
    messages = [oasst(str(i), str(i - 1) if i else None, "ua"[i % 2]) for i in range(depth)]
    [found] = good(rows(tmp_path, "oasst_messages", *messages))
    assert len(found.messages) == depth


# Our own rows, files, limits


def test_our_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    written = Conversation("s", "Sys", (Message("user", "Hi"), Message("assistant", "A")), human=({"humor": 1.0},), predicted=({},), requested=({},))
    no_answer = Conversation("s", "", (Message("user", "Hi"),))
    pq.write_table(to_table([written, no_answer], SCHEMA), tmp_path / "part-0.parquet")
    found = list(read(str(tmp_path), "steerlm", SCHEMA))
    assert found[0] == written
    assert reasons(found) == [(2, "no_answer")]


def test_rows_with_another_schema_are_refused(tmp_path: Path) -> None:
    pq.write_table(to_table([], HELPSTEER), tmp_path / "none.parquet")
    pq.write_table(to_table([Conversation("s", "", (Message("user", "Hi"), Message("assistant", "A")))], HELPSTEER), tmp_path / "part.parquet")
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


@pytest.mark.parametrize(("damage", "num_whole"), [(lambda b: b[: len(b) // 2], 1), (lambda b: b[:-6], 1), (lambda b: b"no gzip" + b, 0)])
def test_a_torn_gz_gives_what_is_whole_and_one_rejection(tmp_path: Path, damage: Any, num_whole: int) -> None:
    content = "".join(json.dumps(helpsteer(response=os.urandom(99).hex())) + "\n" for _ in range(200))
    (tmp_path / "rows.jsonl.gz").write_bytes(damage(gzip.compress(content.encode())))
    found = list(read(str(tmp_path / "rows.jsonl.gz"), "helpsteer", SCHEMA))
    assert all(isinstance(r, Conversation) for r in found[:-1])
    assert len(found) > num_whole
    assert reasons(found) == [(len(found), "broken_file")]


def test_gz_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(helpsteer()).encode() + b"\r\n\r\n"))
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


def test_other_filesystems_keep_their_protocol() -> None:
    with fsspec.open("memory://test_sources/a.jsonl", "wb") as file:
        file.write(json.dumps(helpsteer()).encode())
    assert files_of("memory://test_sources") == ["memory:///test_sources/a.jsonl"]
    assert len(good(list(read("memory://test_sources/*.jsonl", "helpsteer", SCHEMA)))) == 1


def test_user_mistakes_are_said_at_once_with_the_nearest_name(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("record", [{}, {"prompt": 1, "messages": {}, "conversations": "x", "chosen": [], "context": 0, "message_tree_id": {}}])
def test_no_format_raises_on_a_foreign_record(tmp_path: Path, format: str, record: dict[str, Any]) -> None:
    [(line, reason)] = reasons(rows(tmp_path, format, record))
    assert line == 1
    assert reason in ("missing_column", "wrong_type")


# Real rows


def real(name: str) -> str:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real rows at {REAL / name}; set STEERLM_REAL_DATA to their folder")
    return str(REAL / name)


def real_oasst() -> list[dict[str, Any]]:
    with gzip.open(Path(real("oasst1_en_labelled")) / "messages.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def with_spam() -> AttributeSchema:
    """Open Assistant's dials and `spam`, the one label that every labelled answer has."""
    spam = {"name": "spam", "default": 0, "better": "lower", "meaning": "Not meant as an answer."}
    oasst_dials = [a.model_dump() for a in shipped("oasst").attributes]
    return AttributeSchema.model_validate({"name": "with_spam", "attributes": [*oasst_dials, spam]})


def test_real_oasst_every_labelled_answer_is_rated_once_or_rejected_by_name() -> None:
    messages = real_oasst()
    found = list(read(real("oasst1_en_labelled"), "oasst_messages", with_spam()))
    ids = {m["message_id"] for m in messages}
    labelled = [m for m in messages if m["role"] == "assistant" and m["labels"]]
    sound = [m for m in labelled if not m["deleted"] and m["parent_id"] in ids]
    assert len(labelled) == 1019

    rated: Counter[tuple[str, str]] = Counter()
    for conversation in found:
        if isinstance(conversation, Conversation):
            answers = [m.content for m in conversation.messages if m.role == "assistant"]
            rated.update((conversation.group, answer) for answer, values in zip(answers, conversation.human, strict=True) if values)
    assert rated == Counter((m["message_tree_id"], m["text"]) for m in sound)

    # The labelled answers that are not rated stand in the rejections, each on its own line.
    rejected = {r.line for r in found if isinstance(r, Rejected)}
    lost = {i for i, m in enumerate(messages, 1) if m in labelled and m not in sound}
    assert lost <= rejected
    assert sum(rated.values()) + len(lost) == 1019
    assert Counter(reason for _, reason in reasons(found)) == {"deleted": 31, "missing_parent": 2}
    assert sum(isinstance(r, Conversation) for r in found) == 771


def test_real_oasst_trees_and_message_lists_give_the_same_rows(tmp_path: Path) -> None:
    messages = real_oasst()
    uri = write(tmp_path / "trees.jsonl", *as_trees(messages))
    from_trees = [r for r in read(uri, "oasst_trees", SCHEMA, source="oasst") if isinstance(r, Conversation)]
    from_list = [r for r in read(real("oasst1_en_labelled"), "oasst_messages", SCHEMA, source="oasst") if isinstance(r, Conversation)]
    assert from_trees == from_list


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
