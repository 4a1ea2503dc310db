"""Verdicts out of a judge's words, and stored judgements of ours and of FastChat back in."""

import json
from pathlib import Path

import pytest

from data.judge_prompts import Match
from data.verdicts import Verdict, judgement_line, rating_in, read_verdicts, verdict, winner_in

PAIR = Match("pair", 5, "math", 2, ("ours", "theirs"), "pair-v2", "system", "prompt")
SINGLE = Match("single", 5, "math", 1, ("ours",), "single-v1", "system", "prompt")


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        ("A is fine. [[A]]", "first"),
        ("Not [[A]], so: [[B]]", "second"),
        ("[[C]]", "tie"),
        ('Final verdict: "[[B]]"\n', "second"),
        ("[A]", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("", None),
    ],
)
def test_the_last_mark_is_the_verdict(reply: str, winner: str | None) -> None:
    assert winner_in(reply) == winner


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[8.5]]", 8.5),
        ("first [[2]], at last [[9]]", 9.0),
        ("Rating: [6]", 6.0),
        ("see [1]; Rating: [[4]]", 4.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[rating]]", None),
        ("seven", None),
    ],
)
def test_a_rating_is_from_one_to_ten(reply: str, rating: float | None) -> None:
    assert rating_in(reply) == rating


def test_what_has_no_verdict_keeps_its_reason() -> None:
    assert verdict(PAIR, "j", "[[B]]") == Verdict("pair", 5, "math", 2, ("ours", "theirs"), "j", winner="second")
    assert verdict(PAIR, "j", "no idea").problem == "unparsable"
    assert verdict(SINGLE, "j", "[[3]]").rating == 3
    assert verdict(SINGLE, "j", "").problem == "unparsable"
    assert verdict(SINGLE, "j", None, "400 context_length_exceeded").problem == "400 context_length_exceeded"


def stored(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_ours_come_back_as_they_were(tmp_path: Path) -> None:
    said = [(PAIR, "[[A]]", ""), (PAIR, "mumble", ""), (SINGLE, None, "timeout"), (SINGLE, "[[2]]", "")]
    file = stored(
        tmp_path / "judgements.jsonl", *(judgement_line(m, "j", "key", reply, error) for m, reply, error in said)
    )
    assert read_verdicts(file, {}) == [verdict(m, "j", reply, error) for m, reply, error in said]


def test_fastchat_s_pairs_and_singles(tmp_path: Path) -> None:
    game = {
        "question_id": 1,
        "model_1": "a",
        "model_2": "b",
        "judge": ["gpt-4", "pair-v2"],
        "turn": 1,
        "g1_judgment": "[[A]]",
        "g2_judgment": "x",
    }
    mark = {"question_id": 2, "model": "a", "judge": ["gpt-4", "single-v1"], "judgment": "[[9]]", "turn": 2}
    file = stored(
        tmp_path / "gpt-4.jsonl",
        game | {"g1_winner": "model_1", "g2_winner": "model_1"},
        game | {"g1_winner": "tie", "g2_winner": "error"},
        mark | {"score": 9},
        mark | {"score": -1, "judgment": "$ERROR$"},
    )
    found = read_verdicts(file, {1: "roleplay"})
    assert [(v.models, v.winner, v.problem, v.category) for v in found[:4]] == [
        (("a", "b"), "first", "", "roleplay"),
        (("b", "a"), "second", "", "roleplay"),
        (("a", "b"), "tie", "", "roleplay"),
        (("b", "a"), None, "unparsable", "roleplay"),
    ], "model_1 stands in second place when the order is swapped"
    assert [(v.rating, v.problem, v.turn, v.judge) for v in found[4:]] == [
        (9.0, "", 2, "gpt-4"),
        (None, "error", 2, "gpt-4"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question_id": 1}, "no judgement"),
        ({"question_id": 1, "model_1": "a", "model_2": "b", "g1_winner": "a", "g2_winner": "tie"}, "g1_winner is 'a'"),
        ({"question_id": 1, "model": "a", "score": "9"}, "score is '9'"),
        ({"question_id": 1, "model": "a", "score": 9, "turn": 3}, "turn is 3"),
        ({"question_id": 1, "kind": "pair", "models": ["a"]}, "a pair has two models"),
    ],
)
def test_a_bad_judgement_is_a_sentence(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{said}"):
        read_verdicts(stored(tmp_path / "j.jsonl", line), {})
