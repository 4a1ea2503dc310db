"""Question and answer files: FastChat's own are read, ours are read back, a bad line is one sentence that names it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.answer_formats import alpaca_eval_line, arena_hard_line
from data.benchmarks import ModelAnswers, Question, answer_line, file_format, jsonl, read_answers, read_questions
from data.errors import UserError


def written(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def question(id: object = 1, **more: object) -> dict[str, object]:
    return {"question_id": id, "category": "generic", "turns": ["Why?"], **more}


def test_the_real_questions_are_read(real_data: Path) -> None:
    vicuna = read_questions(str(real_data / "vicuna_mtbench" / "vicuna_bench.question.jsonl"))
    mt_bench = read_questions(str(real_data / "vicuna_mtbench" / "mt_bench.question.jsonl"))
    assert (len(vicuna), {len(q.turns) for q in vicuna}) == (80, {1})
    assert (len(mt_bench), {len(q.turns) for q in mt_bench}) == (80, {2})
    assert vicuna[0] == Question(1, "generic", ("How can I improve my time management skills?",))
    reference = read_answers(str(real_data / "vicuna_mtbench" / "mt_bench.reference_answer.gpt-4.jsonl"))
    assert (reference.model, len(reference.turns)) == ("gpt-4", 30)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    asked = Question("q-1", "math", ("One?", "Two?"))
    line = answer_line(asked, "ours", ("1", "zwei ☃"), 12.5)
    assert set(line) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert line["answer_id"] == answer_line(asked, "ours", ("1", "zwei ☃"), 99.0)["answer_id"]
    assert line["answer_id"] != answer_line(asked, "other", ("1", "zwei ☃"), 12.5)["answer_id"]
    file = tmp_path / "ours.jsonl"
    file.write_bytes(jsonl([line]))
    found = read_answers(str(file))
    assert (found.model, found.of(asked)) == ("ours", ("1", "zwei ☃"))


def test_gz_and_limit(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl.gz"
    file.write_bytes(gzip.compress(jsonl([question(1), question(2)])))
    assert [q.id for q in read_questions(str(file), limit=1)] == [1]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([question(), question()], "question 1 twice"),
        ([question(True)], "line 1: question_id is True"),
        ([question(1), question(2, turns=[])], "line 2: turns is no list of texts"),
        ([question(turns=["  "])], "an empty question"),
        ([], "has no questions"),
        ([["no object"]], "line 1"),
    ],
)
def test_a_bad_question_file_is_a_sentence(tmp_path: Path, records: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_questions(written(tmp_path / "q.jsonl", *records))


def test_a_bad_answer_file_is_a_sentence(tmp_path: Path) -> None:
    line = {"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": ["x"]}]}
    for records, said in (
        ([line, line | {"question_id": 2, "model_id": "n"}], "answers of m, n"),
        ([line | {"choices": []}], "choices is no list"),
        ([line | {"model_id": ""}], "model_id is ''"),
        ([line, line], "question 1 twice"),
    ):
        with pytest.raises(ValueError, match=said):
            read_answers(written(tmp_path / "a.jsonl", *records))


def test_too_few_turns_are_named(tmp_path: Path) -> None:
    answers = read_answers(
        written(tmp_path / "a.jsonl", {"question_id": 1, "model_id": "m", "choices": [{"index": 0, "turns": ["x"]}]})
    )
    with pytest.raises(ValueError, match="has 1 of 2 turns of question 1"):
        answers.of(Question(1, "", ("a", "b")))
    with pytest.raises(ValueError, match="has 0 of 1 turns of question 7"):
        answers.of(Question(7, "", ("a",)))


ALPACA = [{"dataset": "koala", "instruction": f"Why {n}?", "output": f"{n}.", "generator": "gpt4"} for n in "ab"]
ARENA = {"uid": "7f", "category": "hard_prompt", "prompt": "Why?", "subcategory": "coding"}


def as_array(path: Path, *records: object) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def test_alpaca_eval_is_one_array_of_questions_and_of_answers(tmp_path: Path) -> None:
    file = as_array(tmp_path / "alpaca_eval.json", *ALPACA)
    questions, answers = read_questions(file), read_answers(file)
    assert [(q.category, q.turns) for q in questions] == [("koala", ("Why a?",)), ("koala", ("Why b?",))]
    assert (answers.model, [answers.of(q) for q in questions]) == ("gpt4", [("a.",), ("b.",)])
    assert file_format(file) == "alpaca_eval"
    ours = as_array(tmp_path / "ours.json", alpaca_eval_line("Why b?", "koala", "Ours.", "demo"))
    assert read_answers(ours).of(questions[1]) == ("Ours.",)


def test_arena_hard_has_its_own_lines(tmp_path: Path) -> None:
    (asked,) = read_questions(file := written(tmp_path / "question.jsonl", ARENA))
    assert asked == Question("7f", "hard_prompt", ("Why?",))
    assert file_format(file) == "arena_hard"
    line = arena_hard_line("7f", "Why?", "Because.", "demo", "id", 1.5)
    assert line["messages"][-1] == {"role": "assistant", "content": {"answer": "Because."}}
    assert read_answers(written(tmp_path / "demo.jsonl", line)).of(asked) == ("Because.",)
    # The first version had FastChat's lines, with an object for each turn.
    turns = [{"content": "Why?", "token_len": 2}]
    older = question("7f", turns=turns, cluster="x")
    assert read_questions(file := written(tmp_path / "v0.1.jsonl", older))[0].turns == ("Why?",)
    assert file_format(file) == "fastchat"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "the file is no JSON array"),
        ("[", "the file is no JSON"),
        ("[1]", "line 1: an entry of the array is no object"),
        ('[{"instruction": ""}]', "instruction is ''; it is a text that is not empty"),
        ('[{"instruction": "a"}, {"instruction": "a"}]', "twice; leave one of them out"),
    ],
)
def test_a_bad_array_is_a_sentence(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "alpaca_eval.json"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        read_questions(str(file))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ALPACA[0] | {"output": 3}, "output is no list of texts"),
        ({"uid": "1", "model": "m", "messages": []}, "messages is no list of texts"),
    ],
)
def test_a_bad_answer_of_these_formats_is_a_sentence(tmp_path: Path, record: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_answers(written(tmp_path / "bad.jsonl", record))


def test_a_digest_is_of_questions_and_answers_and_not_of_their_format(tmp_path: Path) -> None:
    questions = [{"instruction": f"Question {n}?", "dataset": "d"} for n in range(3)]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(questions))
    asked = read_questions(str(tmp_path / "alpaca_eval.json"))
    (tmp_path / "ours.jsonl").write_bytes(jsonl(answer_line(q, "m", [f"A {q.turns[0]}"], 1.0) for q in asked))
    own = [alpaca_eval_line(q.turns[0], "d", f"A {q.turns[0]}", "m") for q in asked]
    (tmp_path / "model_outputs.json").write_text(json.dumps(own))
    ours, theirs = (read_answers(str(tmp_path / name)) for name in ("ours.jsonl", "model_outputs.json"))
    assert ours.digest(asked) == theirs.digest(asked)
    changed = ModelAnswers("m", {**ours.turns, asked[2].id: ("another",)})
    assert changed.digest(asked) != ours.digest(asked)
    assert changed.digest(asked[:2]) == ours.digest(asked[:2]), "what was not judged may change"
    other = [replace(q, turns=("Another question?",)) for q in asked]
    assert ours.digest(other) != ours.digest(asked)
