"""`jobs.judge` with a judge that misbehaves, goes down or is killed: nothing asked twice or lost, all counted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.judge_run import SCORES, of, run_command, write_bench
from support.judge_server import KEY, Answer, Asked, serving, verdict_of, well_behaved

REPOSITORY = Path(__file__).resolve().parent.parent
# openai's client leaves its connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def bench(tmp_path: Path) -> list[str]:
    return write_bench(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    return partial(run_command, capsys)


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
def test_what_no_retry_fixes_is_not_retried(bench: list[str], run: Any, status: int, code: str, said: str) -> None:
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
