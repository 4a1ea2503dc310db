"""Answers that a judge gave one number: conversations with a `score`, and MT-bench's single judgements from FastChat.

FastChat's file has no conversation, only the judge's prompt; its four templates for one answer are taken apart again
(`llm_judge/data/judge_prompts.jsonl`). Knows no Ray and no model.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected
from data.formats import messages
from data.lines import BadRecord, Line, column, numbered, text, typed

_ONE_TURN = re.compile(
    r"\[Question\]\n(?P<question>.*?)\n\n"
    r"(?:\[The Start of Reference Answer\]\n.*?\n\[The End of Reference Answer\]\n\n)?"
    r"\[The Start of Assistant's Answer\]\n(?P<answer>.*)\n\[The End of Assistant's Answer\]\s*\Z",
    re.DOTALL,
)
_TWO_TURNS = re.compile(
    r"<\|The Start of Assistant A's Conversation with User\|>\n(?P<turns>.*)\n"
    r"<\|The End of Assistant A's Conversation with User\|>\s*\Z",
    re.DOTALL,
)
_TURN = re.compile(r"(?:\A|\n)\n### (User|Assistant A):\n")
NO_VERDICT = -1
"""FastChat's score where the judge named none."""


@dataclass(frozen=True)
class Judged:
    """A conversation and the judge's score of its last answer."""

    row: Conversation
    score: float


def read_judged(uri: str, schema: AttributeSchema, source: str, limit: int = 0) -> Iterator[Judged | Rejected]:
    """The judged answers of the file, folder or glob at `uri`, in order, streamed.

    A record has `messages`, or `prompt` and `response`, or FastChat's `user_prompt`. Ids are made from `source` and the
    answer's number. `limit` counts answers without the rejected ones; 0 means all. Raises FileNotFoundError for a `uri`
    with nothing there.
    """
    return numbered(uri, lambda line, number: _judged(line, schema, source, number), limit)


def _judged(line: Line, schema: AttributeSchema, source: str, number: int) -> Judged | Rejected:
    try:
        fastchat = "user_prompt" in line.record and "messages" not in line.record
        score = _score(column(line.record, "score"), fastchat)
        record = _conversation(text(line.record, "user_prompt")) if fastchat else line.record
        row = next(messages(replace(line, record=record), schema, source))
    except BadRecord as bad:
        return bad.at(line)
    if isinstance(row, Rejected):
        return row
    # An answer's content may come again, from another judge; where it stands does not.
    return Judged(replace(row, id=f"{source}-{number:09d}"), score)


def _score(value: Any, fastchat: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        typed(value, float, "score")
    if not math.isfinite(value) or (fastchat and value == NO_VERDICT):
        raise BadRecord("no_score", f"score is {value}: the judge gave none")
    return float(value)


def _conversation(prompt: str) -> Mapping[str, Any]:
    """The conversation that the judge was shown, as `messages` reads it."""
    if found := _TWO_TURNS.search(prompt):
        _, *parts = _TURN.split("\n" + found["turns"].removeprefix("\n"))
        roles = {"User": "user", "Assistant A": "assistant"}
        turns = [
            {"role": roles[who], "content": content.strip("\n")}
            for who, content in zip(parts[::2], parts[1::2], strict=True)
        ]
    elif found := _ONE_TURN.search(prompt):
        turns = [{"role": "user", "content": found["question"]}, {"role": "assistant", "content": found["answer"]}]
    else:
        raise BadRecord(
            "unknown_judge_prompt",
            "`user_prompt` is none of FastChat's four prompts for a single answer; "
            "write the conversation as `messages`",
        )
    return {"messages": turns}
