"""`jobs.judge` in this process, and questions with two models' answers for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.judge_server import JudgeServer

from jobs.judge import main

CATEGORIES = ("writing", "math")
SCORES = ("pairs", "position", "ratings", "single", "percent_of_reference", "counts")
Outcome = tuple[int, dict[str, Any], str, str]


def write_bench(folder: Path) -> list[str]:
    """A command's words for eight questions of two categories, half with two turns, and two models' answers.

    That makes 12 turns: 24 judgements in pairs and 24 of single answers.
    """
    questions, answers = [], {"ours": [], "theirs": []}  # type: ignore[var-annotated]
    for number in range(8):
        turns = [f"Question {number}?", "And then?"][: 1 + number % 2]
        questions.append({"question_id": number, "category": CATEGORIES[number // 4], "turns": turns})
        for model, lines in answers.items():
            texts = [f"{model} says {number}.{turn} of {{this}}." for turn in range(len(turns))]
            lines.append({"question_id": number, "model_id": model, "choices": [{"index": 0, "turns": texts}]})
    for name, lines in {"questions": questions, **answers}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [f"questions={folder}/questions.jsonl", f"answers=[{folder}/ours.jsonl, {folder}/theirs.jsonl]"]
    return [*files, f"output={folder}/judged", "resamples=50", "judge.model=strict", "judge.backoff_s=0.01"]


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """The exit code, the last line's JSON, stdout and stderr."""
    code = 0
    try:
        main(list(words))
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, out, err


def of(judge: JudgeServer) -> str:
    return f"judge.base_url={judge.url}"
