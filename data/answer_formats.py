"""The files of AlpacaEval and Arena-Hard, beside FastChat's. Knows no model and no judge.

AlpacaEval 2 (github.com/tatsu-lab/alpaca_eval): one JSON array, questions {instruction, dataset}, answers with output
and generator besides. Arena-Hard (github.com/lmarena/arena-hard-auto): an object a line, questions {uid, category,
prompt}, answers {uid, ans_id, model, messages, tstamp}, whose last message has {answer: text} as its content.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from data.conversation import Rejected
from data.lines import Line
from data.storage import Storage

FASTCHAT: Literal["fastchat"] = "fastchat"
ALPACA_EVAL: Literal["alpaca_eval"] = "alpaca_eval"
ARENA_HARD: Literal["arena_hard"] = "arena_hard"
AnswerFormat = Literal["fastchat", "alpaca_eval", "arena_hard"]


def format_of(record: Mapping[str, Any]) -> AnswerFormat:
    """Whose question or answer it is."""
    if "instruction" in record:
        return ALPACA_EVAL
    return ARENA_HARD if "uid" in record and ("prompt" in record or "messages" in record) else FASTCHAT


def array_lines(file: str) -> Iterator[Line | Rejected]:
    """The objects of a file that is one JSON array, numbered from 1."""
    try:
        found = json.loads(Storage(file).read_text())
    except (ValueError, RecursionError) as error:
        yield Rejected(file, 1, "broken_json", f"the file is no JSON: {error}")
        return
    if not isinstance(found, list):
        yield Rejected(file, 1, "wrong_type", "the file is no JSON array; JSON lines are in a file that ends in .jsonl")
        return
    for number, record in enumerate(found, start=1):
        if isinstance(record, dict):
            yield Line(file, number, record)
        else:
            yield Rejected(file, number, "wrong_type", "an entry of the array is no object")


def instruction_id(instruction: str) -> str:
    """AlpacaEval knows a question by its text alone."""
    return hashlib.sha256(instruction.encode(errors="surrogatepass")).hexdigest()[:16]


def arena_answer(record: Mapping[str, Any]) -> Any:
    """The text of the last message, or whatever is there."""
    messages = record.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content.get("answer") if isinstance(content, dict) else content


def alpaca_eval_line(instruction: str, dataset: str, output: str, model: str) -> dict[str, Any]:
    """An entry of `model_outputs.json`, which `alpaca_eval --model_outputs` reads."""
    return {"dataset": dataset, "instruction": instruction, "output": output, "generator": model}


def arena_hard_line(uid: str, prompt: str, answer: str, model: str, answer_id: str, tstamp: float) -> dict[str, Any]:
    """A line of model_answer/MODEL.jsonl. Arena-Hard's own utils/add_markdown_info.py adds the metadata of style."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": answer}}]
    return {"uid": uid, "ans_id": answer_id, "model": model, "messages": messages, "tstamp": tstamp}
