"""Benchmark files: questions, and answers (a reference is an answer file). Any fsspec URI. Knows no model and no judge.

FastChat's, one JSON object a line (github.com/lm-sys/FastChat, fastchat/llm_judge), and those of `data.answer_formats`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data.answer_formats import (
    ALPACA_EVAL,
    ARENA_HARD,
    FASTCHAT,
    AnswerFormat,
    arena_answer,
    array_lines,
    format_of,
    instruction_id,
)
from data.conversation import Message, Rejected, content_id
from data.errors import UserError
from data.lines import BadRecord, Line, lines
from data.printable import printable
from data.source_files import files_of, shown_path

T = TypeVar("T")
QuestionId = int | str


@dataclass(frozen=True)
class Question:
    """One question; those after the first turn are asked after the answer to the one before."""

    id: QuestionId
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class ModelAnswers:
    """One model's answer to every turn, by question."""

    model: str
    turns: Mapping[QuestionId, tuple[str, ...]]
    file: str = ""

    def of(self, question: Question) -> tuple[str, ...]:
        """Raises UserError if there is no answer, or one to fewer turns."""
        found = self.turns.get(question.id, ())
        if len(found) < len(question.turns):
            raise UserError(
                f"{self.file or self.model} has {len(found)} of {len(question.turns)} turns of question {question.id}; "
                "answer all questions first, or set limit to judge fewer"
            )
        return found

    def digest(self, questions: Sequence[Question]) -> str:
        """16 hex digits of these questions and the answers, in whatever format both lie; raises UserError as `of`."""
        texts = [[q.id, q.turns, self.of(q)[: len(q.turns)]] for q in questions]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def read_questions(uri: str, limit: int = 0) -> list[Question]:
    """The questions at `uri` in file order, at most `limit` (0 = all); a bad line raises UserError, naming it."""
    found = [record(line, _question) for line in records(uri)]
    _require_unique(uri, (q.id for q in found))
    if not found:
        raise UserError(f"{uri} has no questions; a line is {{question_id, category, turns}}")
    return found[:limit] if limit else found


def file_format(uri: str) -> AnswerFormat:
    """Whose questions or answers are at `uri`; FastChat's if there are none."""
    first = next(records(uri), None)
    return format_of(first.record) if first else FASTCHAT


def read_answers(uri: str) -> ModelAnswers:
    """The answer file at `uri`, all of one model; of several choices the first counts, as in FastChat."""
    found = [record(line, _answer) for line in records(uri)]
    models = sorted({model for model, _, _ in found})
    if len(models) != 1:
        raise UserError(f"{uri} has answers of {', '.join(models) or 'no model'}; an answer file is of one model")
    _require_unique(uri, (id for _, id, _ in found))
    return ModelAnswers(models[0], {id: turns for _, id, turns in found}, uri)


def answer_line(question: Question, model: str, turns: Sequence[str], tstamp: float) -> dict[str, Any]:
    """A line of an answer file; its id follows from its content."""
    messages = [
        m
        for asked, answered in zip(question.turns, turns, strict=True)
        for m in (Message("user", asked), Message("assistant", answered))
    ]
    answer_id = content_id(model, str(question.id), messages)
    return {
        "question_id": question.id,
        "answer_id": answer_id,
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": tstamp,
    }


def jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def records(uri: str) -> Iterator[Line]:
    """Every record of the files at `uri`; raises UserError, naming file and line, for what is none."""
    for file in files_of(uri):
        for line in array_lines(file) if file.endswith(".json") else lines(file):
            if isinstance(line, Rejected):
                raise UserError(
                    f"{shown_path(line.file)}, line {line.line}: {printable(line.detail, 200)}; fix it or take it out"
                )
            yield line


def record(line: Line, read: Callable[[Mapping[str, Any]], T]) -> T:
    """What `read` makes of the line; a BadRecord becomes a sentence that names the line."""
    try:
        return read(line.record)
    except BadRecord as bad:
        raise UserError(f"{shown_path(line.file)}, line {line.number}: {printable(bad.detail, 200)}") from None


def question_id(record: Mapping[str, Any]) -> QuestionId:
    found = record.get("question_id")
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise BadRecord("wrong_type", f"question_id is {printable(repr(found))}; it is a whole number or a text")
    return found


def text_field(record: Mapping[str, Any], name: str) -> str:
    found = record.get(name)
    if not isinstance(found, str) or not found or not _is_unicode(found):
        raise BadRecord("wrong_type", f"{name} is {printable(repr(found))}; it is a text that is not empty")
    return found


def _question(record: Mapping[str, Any]) -> Question:
    format = format_of(record)
    if format == ALPACA_EVAL:
        asked = text_field(record, "instruction")
        return Question(instruction_id(asked), str(record.get("dataset") or format), (asked,))
    if format == ARENA_HARD:
        return Question(text_field(record, "uid"), _category(record), (text_field(record, "prompt"),))
    turns = _texts(record.get("turns"), "turns")
    if not all(turn.strip() for turn in turns):
        raise BadRecord("empty_message", "turns has an empty question")
    return Question(question_id(record), _category(record), turns)


def _category(record: Mapping[str, Any]) -> str:
    return str(record.get("category") or "general")


def _answer(record: Mapping[str, Any]) -> tuple[str, QuestionId, tuple[str, ...]]:
    format = format_of(record)
    if format == ALPACA_EVAL:
        id = instruction_id(text_field(record, "instruction"))
        return text_field(record, "generator"), id, _texts([record.get("output")], "output")
    if format == ARENA_HARD:
        return text_field(record, "model"), text_field(record, "uid"), _texts([arena_answer(record)], "messages")
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadRecord("wrong_type", "choices is no list of {index, turns}")
    return text_field(record, "model_id"), question_id(record), _texts(choices[0].get("turns"), "choices[0].turns")


def _texts(value: object, name: str) -> tuple[str, ...]:
    """Texts, or {content: text} as in the first version of Arena-Hard."""
    if isinstance(value, list):
        value = [turn.get("content") if isinstance(turn, dict) else turn for turn in value]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise BadRecord("wrong_type", f"{name} is no list of texts")
    if not all(map(_is_unicode, value)):
        raise BadRecord("invalid_utf8", f"{name} holds half a surrogate pair")
    return tuple(value)


def _is_unicode(value: str) -> bool:
    """False for half a surrogate pair, which JSON may spell and no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _require_unique(uri: str, ids: Iterable[QuestionId]) -> None:
    seen: set[QuestionId] = set()
    for id in ids:
        if id in seen:
            raise UserError(f"{uri} has question {id} twice; leave one of them out")
        seen.add(id)
