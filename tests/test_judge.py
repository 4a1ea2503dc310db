"""`jobs.judge` from end to end: nothing asked twice, nothing lost, costs limited, stored judgements scored again."""

import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.judge_run import CATEGORIES, SCORES, of, run_command, write_bench
from support.judge_server import KEY, Answer, Asked, serving, well_behaved
from support.leases import here, taken

from data.lease import LEASE
from data.storage import Storage

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


def test_everything_is_judged_once_and_all_is_kept(bench: list[str], run: Any, tmp_path: Path) -> None:
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
        body = judge.asked[0].body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("strict", 0, 2048)
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
    assert {name: again[name] for name in SCORES} == {name: first[name] for name in SCORES}
    assert "ours against theirs" in out
    for file in (tmp_path / "judged").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    assert KEY not in out + err


def test_two_judges_at_once_ask_nothing_twice(bench: list[str], run: Any, tmp_path: Path) -> None:
    with serving(well_behaved) as judge:
        taken(Storage(str(tmp_path / "judged")) / LEASE, here(command="python -m jobs.judge", user="ann"))
        code, _, _, err = run(*bench, of(judge))
        assert code == 1
        assert "python -m jobs.judge of ann" in err
        assert not judge.asked
        code, _, _, _ = run(*bench, of(judge), "--plan")
        assert code == 0, "a plan writes nothing"


def test_what_was_judged_is_scored_again_without_the_judge(bench: list[str], run: Any, tmp_path: Path) -> None:
    with serving() as judge:
        _, first, _, _ = run(*bench, of(judge))
    stored = f"judgements=[{tmp_path}/judged/judgements.jsonl]"
    code, plan, _, err = run(stored, f"output={tmp_path}/scored", "--plan")
    assert (code, plan) == (0, {"judgements": 48, "judge": "strict", "repeated": 0}), err
    assert not (tmp_path / "scored").exists(), "a plan writes nothing"
    code, again, _, err = run(stored, f"output={tmp_path}/scored", "resamples=50")
    assert code == 0, err
    assert {name: again[name] for name in SCORES} == {name: first[name] for name in SCORES}
    assert (tmp_path / "scored" / "report.png").read_bytes().startswith(b"\x89PNG")


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
