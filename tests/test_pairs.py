"""Preferred and rejected answers, as the public sets write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.attributes import AttributeProblem, AttributeSchema, shipped
from data.conversation import Message, Rejected
from data.pairs import Pair, pair_weights, read_pairs

SCHEMA = shipped("oasst")
ASKED, YES, NO = Message("user", "Is it?"), Message("assistant", "Yes."), Message("assistant", "No.")
AS_LIST = {m.content: {"role": m.role, "content": m.content} for m in (ASKED, YES, NO)}


def _read(path: Path, *records: Any, limit: int = 0) -> list[Pair | Rejected]:
    file = path / "pairs.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return list(read_pairs(str(file), SCHEMA, "test", limit))


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": "\n\nHuman: Is it?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Is it?\n\nAssistant: No."},
        {"prompt": "\n\nHuman: Is it?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
        {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [AS_LIST["Is it?"]], "chosen": "Yes.", "rejected": "No."},
        {"prompt": [AS_LIST["Is it?"]], "chosen": [AS_LIST["Yes."]], "rejected": [AS_LIST["No."]]},
        {"prompt": "Is it?", "chosen": [AS_LIST["Yes."]], "rejected": [AS_LIST["No."]]},
        {"chosen": [AS_LIST["Is it?"], AS_LIST["Yes."]], "rejected": [AS_LIST["Is it?"], AS_LIST["No."]]},
        {
            "prompt": "Is it?",
            "chosen": [AS_LIST["Is it?"], AS_LIST["Yes."]],
            "rejected": [AS_LIST["Is it?"], AS_LIST["No."]],
        },
    ],
    ids=[
        "hh text",
        "hh text with prompt",
        "texts",
        "messages and texts",
        "messages",
        "text and messages",
        "whole lists",
        "whole lists beside a prompt",
    ],
)
def test_every_way_of_writing_a_pair_reads_the_same(tmp_path: Path, record: dict[str, Any]) -> None:
    (pair,) = _read(tmp_path, record)
    assert isinstance(pair, Pair)
    assert pair.chosen.messages == (ASKED, YES)
    assert pair.rejected.messages == (ASKED, NO)


def test_ids_differ_although_the_texts_do_not_and_both_sides_share_a_group(tmp_path: Path) -> None:
    record = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    pairs = [p for p in _read(tmp_path, record, record) if isinstance(p, Pair)]
    assert len({side.id for p in pairs for side in (p.chosen, p.rejected)}) == 4
    assert [p.chosen.group for p in pairs] == [p.rejected.group for p in pairs]
    assert pairs[0].chosen.id == "test-000000000-chosen"


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("{", "broken_json", ""),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "missing_column", "rejected: no column 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "wrong_type", "rejected: 'rejected' is a number"),
        ({"prompt": 7, "chosen": "b", "rejected": "c"}, "wrong_type", "chosen: 'prompt' is a number"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "empty_message", "rejected: turns: user, assistant (empty)"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "no_answer", "chosen: turns: user"),
        ({"chosen": "plain", "rejected": "plain too"}, "text_before_first_turn", 'not with "Human:"'),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "wrong_type", "chosen: 'a message' is a string"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal_sides", "neither can win"),
    ],
)
def test_a_broken_pair_is_kept_with_its_reason(tmp_path: Path, record: Any, reason: str, detail: str) -> None:
    whole = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    first, broken, last = _read(tmp_path, whole, record, whole)
    assert isinstance(first, Pair)
    assert isinstance(broken, Rejected)
    assert isinstance(last, Pair)
    assert (broken.file, broken.line, broken.reason) == (str(tmp_path / "pairs.jsonl"), 2, reason)
    assert detail in broken.detail


def test_a_limit_counts_pairs_not_rejections(tmp_path: Path) -> None:
    whole = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    assert [type(p).__name__ for p in _read(tmp_path, "{", whole, whole, whole, limit=2)] == [
        "Rejected",
        "Pair",
        "Pair",
    ]


def test_hh_rlhf_reads_whole(real_data: Path) -> None:
    found = list(read_pairs(str(real_data / "hh_rlhf_harmless_test"), SCHEMA, "hh"))
    assert len(found) == 2312
    reasons = sorted(p.reason for p in found if isinstance(p, Rejected))
    assert reasons == ["empty_message"] * 4 + ["roles_do_not_alternate"] * 9


def test_weights_come_from_the_schema_unless_they_are_given() -> None:
    weights = pair_weights(SCHEMA, {})
    assert weights == pytest.approx(
        {"quality": 1 / 3, "toxicity": -1 / 3, "humor": 0, "creativity": 0, "helpfulness": 1 / 3}
    )
    assert pair_weights(SCHEMA, {"humor": 2, "quality": 0.5}) == {
        "quality": 0.5,
        "toxicity": 0,
        "humor": 2,
        "creativity": 0,
        "helpfulness": 0,
    }
    with pytest.raises(AttributeProblem, match="did you mean 'humor'"):
        pair_weights(SCHEMA, {"humour": 1.0})


def test_weights_under_which_nobody_can_win_are_refused() -> None:
    neither = AttributeSchema(name="style", attributes=tuple(a for a in SCHEMA.attributes if a.better == "neither"))
    for schema, given in ((neither, {}), (SCHEMA, {"quality": 0.0})):
        with pytest.raises(ValueError, match="all pairs would tie"):
            pair_weights(schema, given)
