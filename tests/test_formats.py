"""HelpSteer's formats and hh-rlhf, sound and broken: rows come out, faults are rejections with line and reason."""

import math
from pathlib import Path
from typing import Any

import pytest
from support.source_rows import RATED, good, helpsteer, reasons, rows, turns

from data.attributes import shipped
from data.conversation import Conversation, Rejected


def test_helpsteer_rates_the_answer(tmp_path: Path) -> None:
    [found] = good(rows(tmp_path, "helpsteer", helpsteer()))
    assert turns(found) == [("user", "Why?"), ("assistant", "Because.")]
    assert found.human == ({k: float(v) for k, v in RATED.items()},)
    assert found.source == "helpsteer"


def test_helpsteer2_earlier_turns_are_parsed_out_of_the_prompt(tmp_path: Path) -> None:
    prompt = "Hi\nthere\n<extra_id_1>Assistant\nYes?\n\n<extra_id_1>User\nWhy <extra_id_1> though?"
    [found] = good(rows(tmp_path, "helpsteer", helpsteer(prompt)))
    assert turns(found) == [
        ("user", "Hi\nthere"),
        ("assistant", "Yes?\n"),
        ("user", "Why <extra_id_1> though?"),
        ("assistant", "Because."),
    ]
    assert found.human[0] == {}
    assert found.human[1]["helpfulness"] == 3


def test_a_marker_before_the_first_turn_too_is_no_empty_turn(tmp_path: Path) -> None:
    [found] = good(
        rows(
            tmp_path,
            "helpsteer",
            helpsteer("<extra_id_1>User\nHi\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?"),
        )
    )
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
    context = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
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
    pair = {
        "chosen": "\n\nHuman: Hi\n\nyou\n\nAssistant: Human: no\n\nHuman:  So\n\nAssistant: A.",
        "rejected": "\n\nHuman: Hi\n\nyou\n\nAssistant: B.",
    }
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
