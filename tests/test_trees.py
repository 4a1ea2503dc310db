"""Open Assistant's trees, synthetic and real: every labeled answer is rated once, or rejected by name."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from support.source_rows import SCHEMA, as_trees, good, oasst, real, reasons, rows, turns, write

from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, Rejected
from data.sources import read


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
    messages = [
        oasst("2", "1", "a2"),
        oasst("y", "x", "ay", tree="s"),
        oasst("1", None, "u1"),
        oasst("x", None, "ux", tree="s"),
    ]
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
        tmp_path,
        "oasst_trees",
        {"prompt": whole["prompt"]},
        {"message_tree_id": "t"},
        whole | {"prompt": {**whole["prompt"], "replies": ["a2"]}},
        whole,
    )
    assert reasons(found) == [(1, "missing_column"), (2, "missing_column"), (3, "wrong_type")]
    assert isinstance(found[3], Conversation)


def test_a_very_deep_tree_needs_no_recursion(tmp_path: Path) -> None:
    depth = 3000
    messages = [oasst(str(i), str(i - 1) if i else None, "ua"[i % 2]) for i in range(depth)]
    [found] = good(rows(tmp_path, "oasst_messages", *messages))
    assert len(found.messages) == depth


def real_oasst() -> list[dict[str, Any]]:
    with gzip.open(Path(real("oasst1_en_labelled")) / "messages.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def with_spam() -> AttributeSchema:
    """Open Assistant's attributes and `spam`, the one label that every labeled answer has."""
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
            rated.update(
                (conversation.group, answer)
                for answer, values in zip(answers, conversation.human, strict=True)
                if values
            )
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
    from_list = [
        r
        for r in read(real("oasst1_en_labelled"), "oasst_messages", SCHEMA, source="oasst")
        if isinstance(r, Conversation)
    ]
    assert from_trees == from_list
