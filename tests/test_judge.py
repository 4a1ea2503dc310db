"""`jobs.judge` from end to end against a judge that speaks OpenAI's wire and misbehaves: nothing asked twice, nothing lost, everything counted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.judge_server import KEY, Answer, Asked, JudgeServer, serving, verdict_of, well_behaved

from data.storage import Storage
from jobs.judge import main

REPOSITORY = Path(__file__).resolve().parent.parent
CATEGORIES = ("writing", "math")
# openai's client leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def bench(tmp_path: Path) -> list[str]:
    """Eight questions of two categories, half of them with two turns, and two models' answers: 12 turns, 24 in pairs and 24 alone."""
    questions, answers = [], {"ours": [], "theirs": []}  # type: ignore[var-annotated]
    for number in range(8):
        turns = [f"Question {number}?", "And then?"][: 1 + number % 2]
        questions.append({"question_id": number, "category": CATEGORIES[number // 4], "turns": turns})
        for model, lines in answers.items():
            said = [f"{model} says {number}.{turn} of {{this}}." for turn in range(len(turns))]
            lines.append({"question_id": number, "model_id": model, "choices": [{"index": 0, "turns": said}]})
    for name, lines in {"questions": questions, **answers}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = f"answers=[{tmp_path}/ours.jsonl, {tmp_path}/theirs.jsonl]"
    return [
        f"questions={tmp_path}/questions.jsonl",
        files,
        f"output={tmp_path}/judged",
        "resamples=50",
        "judge.model=strict",
        "judge.backoff_s=0.01",
    ]


Run = tuple[int, dict[str, Any], str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in this process: exit code, the last line's JSON, stdout and stderr."""

    def one(*words: str) -> Run:
        code = 0
        try:
            main(list(words))
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, out, err

    return one


def of(judge: JudgeServer) -> str:
    return f"judge.base_url={judge.url}"


SCORES = ("pairs", "position", "ratings", "single", "percent_of_reference", "counts")


def test_everything_is_judged_once_and_scored_again_without_the_judge(
    bench: list[str], run: Any, tmp_path: Path
) -> None:
    first_three, together = iter(range(3)), threading.Barrier(3)

    def waits_for_two_more(asked: Asked) -> Answer:
        if next(first_three, None) is not None:
            together.wait(timeout=60)
        return well_behaved(asked)

    with serving(waits_for_two_more) as judge:
        code, first, out, err = run(*bench, of(judge), "judge.concurrency=3")
        assert code == 0, err
        assert set(judge.counts().values()) == {1}
        assert len(judge.asked) == 48
        assert judge.most_at_once == 3
        assert judge.asked[0].body["model"] == "strict"
        assert (judge.asked[0].body["temperature"], judge.asked[0].body["max_tokens"]) == (0, 2048)
        assert judge.asked[0].key == f"Bearer {KEY}"
        code, again, _, _ = run(*bench, of(judge))
        assert code == 0
        assert len(judge.asked) == 48, "all of it was kept"
    (pair,) = first["pairs"]
    assert pair["win"] + pair["tie"] + pair["loss"] == 12
    assert set(pair["categories"]) == set(CATEGORIES)
    assert first["counts"]["single"] == {"judged": 24, "verdicts": 24, "unparsable": 0, "errors": {}}
    assert set(first["ratings"]) == {"ours", "theirs"}
    assert first["percent_of_reference"]["ours"]["n"] == 12
    assert first["cost"]["spent"]["prompt_tokens"] == 4800
    assert again["cost"]["spent"]["requests"] == 0
    assert again["cost"]["with_those_before"]["prompt_tokens"] == 4800
    code, stored, _, err = run(
        f"judgements=[{tmp_path}/judged/judgements.jsonl]", f"output={tmp_path}/scored", "resamples=50"
    )
    assert code == 0, err
    assert (
        {name: stored[name] for name in SCORES}
        == {name: first[name] for name in SCORES}
        == {name: again[name] for name in SCORES}
    )
    assert "ours against theirs" in out
    assert (tmp_path / "scored" / "report.png").read_bytes().startswith(b"\x89PNG")
    for file in (tmp_path / "judged").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    assert KEY not in out + err


def naughty(asked: Asked) -> Answer:
    """Most prompts go wrong once or twice, each in a way of its own; some never come right."""
    kind = int(hashlib.sha256(asked.prompt.encode()).hexdigest(), 16) % 8
    first = asked.number == 1
    if kind == 0 and first:
        return Answer("slow down", 429, {"Retry-After": "0.3"})
    if kind == 1 and asked.number <= 2:
        return Answer("oops", 500)
    if kind == 2 and first:
        return Answer(drop=True)
    if kind == 3 and first:
        return Answer(body=b'{"choices": [{"mess')
    if kind == 4:
        return Answer("I would rather talk about the weather.")
    if kind == 5:
        return Answer(f"too many tokens, {asked.key}", 400, {"X-Code": "context_length_exceeded"})
    if kind == 6 and first:
        return Answer("busy", 503, {"Retry-After": "0"})
    return Answer(verdict_of(asked), usage=kind != 7)


def test_a_misbehaving_judge_is_asked_again_and_what_stays_wrong_is_counted(
    bench: list[str], run: Any, tmp_path: Path
) -> None:
    with serving(naughty) as judge:
        code, found, _, err = run(*bench, of(judge))
        assert code == 0, err
        prompts = judge.counts()
        assert all(times <= 3 for times in prompts.values())
        kinds = {p: int(hashlib.sha256(p.encode()).hexdigest(), 16) % 8 for p in prompts}
        assert set(kinds.values()) == set(range(8)), "every way of going wrong was tried"
        held = [[a.at for a in judge.asked if a.prompt == p] for p, kind in kinds.items() if kind == 0]
        assert all(later - sooner >= 0.3 for sooner, later in held), "Retry-After was waited for"
        asked = len(judge.asked)
        _, again, _, _ = run(*bench, of(judge))
        assert len(judge.asked) == asked, "neither what cannot be read nor what was refused is asked again"
    totals = {name: sum(c[name] for c in found["counts"].values()) for name in ("judged", "verdicts", "unparsable")}
    wrong = sum(sum(c["errors"].values()) for c in found["counts"].values())
    assert totals["judged"] == 48 == totals["verdicts"] + totals["unparsable"] + wrong
    assert totals["unparsable"] == sum(kind == 4 for kind in kinds.values())
    assert wrong == sum(kind == 5 for kind in kinds.values())
    assert {reason for c in found["counts"].values() for reason in c["errors"]} == {"400 context_length_exceeded"}
    assert found["cost"]["retries"] == sum(prompts.values()) - len(prompts)
    assert found["cost"]["spent"]["guessed"] == sum(kind == 7 for kind in kinds.values())
    assert KEY not in err, "an endpoint that repeats the key is not repeated"
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert {name: again[name] for name in SCORES} == {name: found[name] for name in SCORES}


def test_killed_in_the_middle_it_goes_on_without_asking_twice(bench: list[str], run: Any, tmp_path: Path) -> None:
    concurrency = 2

    def slowly(asked: Asked) -> Answer:
        answer = naughty(asked)
        answer.slow_s = 0.1
        return answer

    with serving(slowly) as judge:
        words = [sys.executable, "-m", "jobs.judge", *bench, of(judge), f"judge.concurrency={concurrency}"]
        process = subprocess.Popen(
            words, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        replies = tmp_path / "judged" / "replies"
        while process.poll() is None and sum(file.read_bytes().count(b"\n") for file in replies.glob("*.jsonl")) < 15:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL, "it ended by itself before the kill"
        kept = {json.loads(line)["key"] for file in replies.glob("*.jsonl") for line in file.read_text().splitlines()}
        assert 15 <= len(kept) < 48
        assert not (tmp_path / "judged" / "report.json").exists()
        before = judge.counts()
        code, resumed, out, err = run(*bench, of(judge))
        assert code == 0, err
        assert f"{len(kept)} answered before" in out
        again = [p for p, times in judge.counts().items() if p in before and times > before[p]]
        # Those on their way when it was killed, and no other.
        assert len(again) <= concurrency
    with serving(naughty) as other:
        _, unbroken, _, _ = run(
            *[w for w in bench if not w.startswith("output=")], f"output={tmp_path}/unbroken", of(other)
        )
    assert {name: resumed[name] for name in SCORES} == {name: unbroken[name] for name in SCORES}


def test_a_wrong_key_ends_it_at_once(bench: list[str], run: Any) -> None:
    with serving(lambda asked: Answer(f"Incorrect API key: {asked.key}", 401)) as judge:
        code, _, _, err = run(*bench, of(judge), "judge.concurrency=2")
    assert code == 1
    assert "does not know the key" in err
    assert KEY not in err
    assert len(judge.asked) <= 4
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(404, "model_not_found", "knows no such model"), (429, "insufficient_quota", "no quota left")],
)
def test_what_no_repetition_mends_is_not_repeated(
    bench: list[str], run: Any, status: int, code: str, said: str
) -> None:
    with serving(lambda asked: Answer("no", status, {"X-Code": code})) as judge:
        left, _, _, err = run(*bench, of(judge), "judge.concurrency=1")
    assert left == 1
    assert said in err
    assert set(judge.counts().values()) == {1}


def test_a_judge_that_is_down_is_given_up_and_asked_again_by_the_next_run(bench: list[str], run: Any) -> None:
    with serving(lambda asked: Answer("down", 503)) as judge:
        code, _, _, err = run(*bench, of(judge), "judge.max_retries=1", "judge.give_up_after=4", "judge.concurrency=1")
        assert code == 1
        assert "failed 4 requests in a row" in err
        assert len(judge.asked) == 8
        judge.behave = well_behaved
        code, found, _, err = run(*bench, of(judge))
        assert code == 0, err
    assert sum(c["verdicts"] for c in found["counts"].values()) == 48


def test_who_is_told_to_come_back_tomorrow_gives_the_request_up(bench: list[str], run: Any) -> None:
    with serving(
        lambda asked: (
            Answer("later", 429, {"Retry-After": "86400"})
            if asked.number == 1 and "7.1" in asked.prompt
            else well_behaved(asked)
        )
    ) as judge:
        code, found, _, err = run(*bench, of(judge))
        assert code == 0, err
        failed = sum(sum(c["errors"].values()) for c in found["counts"].values())
        assert failed == 4, "the second turn of question 7: two alone, two in pairs"
        assert "come back in 86400 s" in err
        _, found, _, _ = run(*bench, of(judge))
    assert not any(c["errors"] for c in found["counts"].values())


def test_what_would_cost_too_much_is_not_asked(bench: list[str], run: Any) -> None:
    prices = ["prices.prompt_dollars=1000", "prices.reply_dollars=2000"]
    with serving() as judge:
        code, plan, _, _ = run(*bench, of(judge), *prices, "--plan")
        assert code == 0
        assert plan["estimate"]["requests"] == 48
        guess = plan["estimate"]["dollars"]
        assert guess == pytest.approx(
            (plan["estimate"]["prompt_tokens"] * 1000 + plan["estimate"]["reply_tokens"] * 2000) / 1e6, abs=1e-3
        )
        code, _, _, err = run(*bench, of(judge), *prices, "prices.max_cost=0.01")
        assert code == 1
        assert "would cost about" in err
        assert "prices.max_cost" in err
        assert not judge.asked
        # A request costs .12 as counted; the estimate is made to say less than that.
        low = [
            "prices.reply_tokens=0",
            "prices.characters_per_token=100000",
            "prices.max_cost=1",
            "judge.concurrency=1",
        ]
        code, _, _, err = run(*bench, of(judge), *prices, *low)
        assert code == 1
        assert "has cost 1.08 dollars" in err
        assert len(judge.asked) == 9
        code, found, _, _ = run(*bench, of(judge), *prices)
    assert found["cost"]["spent"]["requests"] == 39
    assert found["cost"]["with_those_before"]["dollars"] == pytest.approx(48 * 0.12)


def test_one_file_is_rated_alone(bench: list[str], run: Any, tmp_path: Path) -> None:
    words = [w for w in bench if not w.startswith("answers=")]
    with serving() as judge:
        code, found, _, err = run(*words, f"answers=[{tmp_path}/ours.jsonl]", of(judge), "limit=3")
        assert code == 0, err
        assert run(*words, f"answers=[{tmp_path}/ours.jsonl]", of(judge), "kinds=[pair]")[0] == 1
    assert len(judge.asked) == 4
    assert (found["pairs"], found["ratings"], list(found["single"])) == ([], {}, ["ours"])


def test_everything_may_lie_on_an_object_store(bench: list[str], run: Any, s3: str, tmp_path: Path) -> None:
    bucket = Storage(f"{s3}/judge")
    for name in ("questions", "ours", "theirs"):
        (bucket / f"{name}.jsonl").put(f"{tmp_path}/{name}.jsonl")
    words = [w.replace(str(tmp_path), bucket.uri) for w in bench]
    with serving() as judge:
        assert run(*words, of(judge), "limit=2")[0] == 0
        asked = len(judge.asked)
        code, found, _, err = run(*words, of(judge))
        assert code == 0, err
        assert (asked, len(judge.asked)) == (12, 48)
    code, stored, _, err = run(
        f"judgements=[{bucket.uri}/judged/judgements.jsonl]", f"output={bucket.uri}/scored", "resamples=50"
    )
    assert code == 0, err
    assert {name: stored[name] for name in SCORES} == {name: found[name] for name in SCORES}
    assert (bucket / "scored" / "report.png").exists()


def test_fastchat_s_judgements_are_scored(run: Any, tmp_path: Path) -> None:
    questions = [{"question_id": q, "category": CATEGORIES[q % 2], "turns": ["?"]} for q in range(4)]
    games = [("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "model_2"), ("error", "model_1")]
    about = {"judge": ["gpt-4", "pair-v2"], "turn": 1, "model_1": "a", "model_2": "b"}
    pairs = [about | {"question_id": q, "g1_winner": one, "g2_winner": two} for q, (one, two) in enumerate(games)]
    singles = [
        {"judge": ["gpt-4", "single-v1"], "turn": 1, "question_id": q, "model": model, "score": score, "judgment": ""}
        for model, scores in {"a": (8, 6, 4, -1), "b": (10, 10, 10, 10)}.items()
        for q, score in enumerate(scores)
    ]
    for name, lines in {"questions": questions, "gpt-4_pair": pairs, "gpt-4_single": singles}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = f"judgements=[{tmp_path}/gpt-4_pair.jsonl, {tmp_path}/gpt-4_single.jsonl]"
    code, found, out, err = run(
        files, f"questions={tmp_path}/questions.jsonl", f"output={tmp_path}/scored", "resamples=50"
    )
    assert code == 0, err
    (pair,) = found["pairs"]
    assert [pair[name] for name in ("win", "tie", "loss", "without_verdict", "win_rate")] == [1, 1, 1, 1, 0.5]
    assert found["position"]["reversed"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["percent_of_reference"]["a"]["percent"] == 60.0
    assert set(pair["categories"]) == set(CATEGORIES)
    assert found["counts"]["pair"]["unparsable"] == 1
    assert found["judge"] == "gpt-4"
    assert "60.0 % of b" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["judge.model=''"], 2, "nobody judges"),
        (["judgements=[x.jsonl]"], 2, "answers, references, prompts and limit are not read"),
        (["judge.base_url=https://me:secret@judge/v1"], 2, "judge.key_variable"),
        (["judge.extra.messages=[]"], 2, "extra.messages"),
        (["prices.max_cost=1"], 2, "no price"),
        (["judge.modell=x"], 2, "did you mean"),
        (["reference_model=nobody"], 1, "there are answers of ours, theirs"),
        (["judge.key_variable=NOT_SET_ANYWHERE"], 1, "judge.key_variable=null"),
        (["questions=nowhere.jsonl"], 1, "nothing to read at nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_sentence(bench: list[str], run: Any, words: list[str], code: int, said: str) -> None:
    left, _, _, err = run(*bench, "judge.base_url=http://127.0.0.1:9/v1", *words)
    assert left == code
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if not line.startswith("warning: ")]) == 1


def test_the_same_model_twice_is_refused(bench: list[str], run: Any, tmp_path: Path) -> None:
    code, _, _, err = run(*bench, f"answers=[{tmp_path}/ours.jsonl, {tmp_path}/ours.jsonl]")
    assert code == 1
    assert "two answer files are of 'ours'" in err


def test_it_needs_neither_torch_nor_ray() -> None:
    code = "import sys, jobs.judge; print(sorted({'torch', 'transformers', 'ray'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
