"""A policy's answers to the questions of a benchmark, in FastChat's format and in the benchmark's own.

A second turn follows its own answer to the first. Knows no command.
"""

import hashlib
import posixpath
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.answer_formats import ALPACA_EVAL, ARENA_HARD, alpaca_eval_line, arena_hard_line
from data.benchmarks import Question, answer_line, file_format, jsonl, read_questions
from data.conversation import Message, from_table
from data.prompts import Prompt, prompt, prompts_table
from data.run_layout import BENCHMARKS
from data.selection import CUT_OFF, FINISH, TOO_LONG
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample
from jobs.runner.stage import Run, fingerprint_of, log

Answered = Mapping[str, tuple[str, str]]
"""Id of a prompt -> the answer, and how it ended."""


@dataclass(frozen=True)
class Asked:
    """Which questions are answered, and how."""

    questions: str
    """URI of the question file."""
    limit: int
    requested: Mapping[str, float]
    temperature: float
    model: str
    """Its name in the answer files."""


def answers_stage(questions: str, model: str) -> str:
    """The stage that answers: a folder for each question file and model."""
    file = posixpath.basename(questions)
    for suffix in (".gz", ".jsonl", ".json", ".question"):
        file = file.removesuffix(suffix)
    return f"{BENCHMARKS}/{file or 'questions'}/{model}/answers"


def questions_checksum(questions: str) -> str:
    """16 hex digits of what is asked."""
    return hashlib.sha256(repr(read_questions(questions)).encode()).hexdigest()[:16]


def answer_questions(run: Run, folder: Storage, policy: Storage, asked: Asked) -> AnswersMetrics:
    """Answer turn after turn in the folder of a stage that resumes, then write the whole answer files."""
    questions = read_questions(asked.questions, asked.limit)
    values = ", ".join(f"{name} {value:g}" for name, value in asked.requested.items()) or "nothing requested"
    log(f"answer: {len(questions)} questions of {asked.questions} to {policy.uri} with {values}")
    texts: list[list[str]] = [[] for _ in questions]
    ends: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(q.turns) for q in questions)):
        prompts = turn_prompts(questions, texts, turn, asked.requested, run.preset.seed)
        part = folder / f"turn-{turn + 1}"
        answers = _ask(run, policy, list(prompts.values()), part, turn, asked.temperature, fingerprint_of(folder))
        for number, one in prompts.items():
            text, end = answers[one.id]
            texts[number].append(text)
            ends[number].append(end)
    file, own = _write(folder, asked, questions, texts)
    counts = _counts(questions, texts, ends)
    log(f"answer: {', '.join(f'{n} {name}' for name, n in counts.items())} -> {(own or file).uri}")
    found = AnswersMetrics(
        answers=file.uri,
        policy=policy.uri,
        model_id=asked.model,
        requested=dict(asked.requested),
        counts=counts,
        too_long=tuple(q.id for q, end in zip(questions, ends, strict=True) if TOO_LONG in end),
    )
    return found.model_copy(update={"benchmark_file": own.uri}) if own else found


def _write(
    folder: Storage, asked: Asked, questions: Sequence[Question], texts: Sequence[Sequence[str]]
) -> tuple[Storage, Storage | None]:
    """The file in FastChat's format, which `jobs.judge` reads, and the one that the benchmark's own program reads."""
    file, now = folder / f"{asked.model}.jsonl", round(time.time(), 3)
    lines = [answer_line(question, asked.model, turns, now) for question, turns in zip(questions, texts, strict=True)]
    file.write_bytes(jsonl(lines))
    format, own = file_format(asked.questions), None
    answered = [(question, turns[0]) for question, turns in zip(questions, texts, strict=True)]
    if format == ALPACA_EVAL:
        own = folder / "model_outputs.json"
        own.write_json([alpaca_eval_line(q.turns[0], q.category, text, asked.model) for q, text in answered])
    elif format == ARENA_HARD:
        own, ids = folder / "model_answer" / f"{asked.model}.jsonl", [line["answer_id"] for line in lines]
        pairs = zip(answered, ids, strict=True)
        own.write_bytes(
            jsonl(arena_hard_line(str(q.id), q.turns[0], text, asked.model, id, now) for (q, text), id in pairs)
        )
    return file, own


def turn_prompts(
    questions: Sequence[Question],
    texts: Sequence[Sequence[str]],
    turn: int,
    requested: Mapping[str, float],
    seed: int,
) -> dict[int, Prompt]:
    """The prompts of this turn, by the number of the question."""
    prompts = {}
    for number, question in enumerate(questions):
        if turn < len(question.turns):
            earlier = zip(question.turns[:turn], texts[number], strict=True)
            messages = [m for q, a in earlier for m in (Message("user", q), Message("assistant", a))]
            messages.append(Message("user", question.turns[turn]))
            prompts[number] = prompt("benchmark", str(question.id), "", messages, dict(requested), number, seed)
    return prompts


def _ask(
    run: Run,
    policy: Storage,
    prompts: Sequence[Prompt],
    folder: Storage,
    turn: int,
    temperature: float,
    fingerprint: str,
) -> Answered:
    write_table(prompts_table(prompts), folder / "prompts")
    what, prompts_in, answers_in = f"answer turn {turn + 1}", folder / "prompts", folder / "answers"
    sample(run, what, policy, prompts_in, answers_in, temperature, fingerprint, keep_too_long=True)
    found: dict[str, tuple[str, str]] = {}
    for table in (folder / "answers").tables():
        ends = table.column(FINISH).to_pylist()
        found |= {row.id: (row.messages[-1].content, end) for row, end in zip(from_table(table), ends, strict=True)}
    return found


def _counts(
    questions: Sequence[Question], texts: Sequence[Sequence[str]], ends: Sequence[Sequence[str]]
) -> dict[str, int]:
    all_ends = [end for found in ends for end in found]
    counts = {
        "questions": len(questions),
        "answers": len(all_ends),
        "empty": sum(not t for found in texts for t in found),
    }
    return counts | {"cut_off": all_ends.count(CUT_OFF), "too_long": all_ends.count(TOO_LONG)}
