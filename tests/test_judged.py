"""Answers with a judge's score: as conversations, and as FastChat stores what the judge was shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.attributes import shipped
from data.conversation import Message, Rejected
from data.judged import Judged, read_judged

SCHEMA = shipped("oasst")
SAID = {"question": "Is it?\n\nReally?", "answer": "Yes.\n\n[Question]\nno", "ref_answer_1": "It is."}
TWICE = {
    "question_1": "Is it?",
    "answer_1": "Yes.\n\n### A heading\nof mine",
    "question_2": "Why?",
    "answer_2": "So.",
    "ref_answer_1": "R",
    "ref_answer_2": "R",
}


def _read(path: Path, *records: Any, limit: int = 0) -> list[Judged | Rejected]:
    file = path / "judged.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return list(read_judged(str(file), SCHEMA, "judge", limit))


def test_conversations_with_a_score(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}], "score": 7}
    first, second, again = _read(tmp_path, chat, {"prompt": "Hi", "response": "B", "score": -1.5}, chat)
    assert isinstance(first, Judged)
    assert isinstance(second, Judged)
    assert isinstance(again, Judged)
    assert (first.score, second.score) == (7.0, -1.5)
    assert [m.content for m in second.row.messages] == ["Hi", "B"]
    assert (first.row.id, again.row.id) == ("judge-000000000", "judge-000000002")
    assert len(_read(tmp_path, "{", chat, chat, limit=1)) == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "response": "b"}, "missing_column"),
        ({"prompt": "a", "response": "b", "score": "7"}, "wrong_type"),
        ({"prompt": "a", "response": "b", "score": True}, "wrong_type"),
        ({"prompt": "a", "response": "b", "score": None}, "wrong_type"),
        ({"prompt": "a", "response": "b", "score": float("nan")}, "no_score"),
        ({"prompt": "a", "response": " ", "score": 1}, "empty_message"),
        ({"user_prompt": "Rate this.", "score": 1}, "unknown_judge_prompt"),
        (
            {
                "user_prompt": "[Question]\na\n\n[The Start of Assistant's Answer]\nb\n[The End of Assistant's Answer]",
                "score": -1,
            },
            "no_score",
        ),
        ("{", "broken_json"),
    ],
)
def test_what_has_no_score_or_no_conversation_is_kept_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    (found,) = _read(tmp_path, record)
    assert isinstance(found, Rejected)
    assert (found.reason, found.line) == (reason, 1)


def test_fastchats_judgements_are_taken_apart_as_its_own_templates_made_them(tmp_path: Path, real_data: Path) -> None:
    lines = (real_data / "vicuna_mtbench" / "judge_prompts.jsonl").read_text().splitlines()
    single = [r for r in map(json.loads, lines) if r["type"] == "single"]
    assert len(single) == 4
    for template in single:
        prompt = template["prompt_template"].format(**SAID, **{k: v for k, v in TWICE.items() if k not in SAID})
        (found,) = _read(tmp_path, {"user_prompt": prompt, "score": 8, "judgment": "Rating: [[8]]", "turn": 1})
        assert isinstance(found, Judged), found
        if "multi-turn" in template["name"]:
            turns = [TWICE[name] for name in ("question_1", "answer_1", "question_2", "answer_2")]
        else:
            turns = [SAID["question"], SAID["answer"]]
        assert found.row.messages == tuple(
            Message(("user", "assistant")[i % 2], said) for i, said in enumerate(turns)
        ), template["name"]
