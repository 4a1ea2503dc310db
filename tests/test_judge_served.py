"""All 80 Vicuna questions judged, in both orders and alone, by our own endpoint on a finished run of the demo.

The demo's policy knows no verdicts and has a context of 512 tokens, so most replies are unparsable or refused, and
nothing may be lost. Prints the counts.
"""

import json
from pathlib import Path

import pytest
from support.endpoint import Endpoint, running

from data.benchmarks import jsonl, read_questions
from data.judge_prompts import NAMES
from jobs.judge import main
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ASKING = {
    "pair": "Which is better?\n{question}\n[A] {answer_a}\n[B] {answer_b}",
    "single": "Rate it.\n{question}\n{answer}",
}
"""So short that many fit; what the policy then says of them is its own affair."""


@pytest.fixture(scope="module")
def endpoint(ray_cluster: object, demo_run: Path) -> object:
    with running([Located(str(demo_run / "policy" / "model"), "demo")], max_num_seqs=16) as endpoint:
        yield endpoint


def answered(endpoint: Endpoint, questions: Path, target: Path, **attributes: int) -> str:
    """An answer file of the endpoint's own words with these attributes."""
    lines = []
    for question in read_questions(str(questions)):
        status, said = endpoint.chat(
            messages=[{"role": "user", "content": question.turns[0]}],
            attributes=attributes,
            temperature=0,
            max_tokens=60,
        )
        assert status == 200, said
        turns = [said["choices"][0]["message"]["content"]]
        lines.append({"question_id": question.id, "model_id": target.stem, "choices": [{"index": 0, "turns": turns}]})
    target.write_bytes(jsonl(lines))
    return str(target)


@pytest.mark.parametrize("prompts", ["short", "shipped"])
def test_eighty_questions_by_our_own_endpoint(
    endpoint: Endpoint, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: str
) -> None:
    questions = real_data / "vicuna_mtbench" / "vicuna_bench.question.jsonl"
    best = answered(endpoint, questions, tmp_path / "best.jsonl", helpfulness=4, humor=0)
    funny = answered(endpoint, questions, tmp_path / "funny.jsonl", helpfulness=0, humor=4)
    words = [f"questions={questions}", f"answers=[{best}, {funny}]", f"output={tmp_path}/judged"]
    words += ["judge.model=demo", "judge.key_variable=null"]
    words += [f"judge.base_url={endpoint.url}/v1", "judge.max_tokens=60", "judge.concurrency=8", "resamples=100"]
    if prompts == "short":
        file = tmp_path / "prompts.jsonl"
        templates = {name: "{question_1}" if "multi" in name else ASKING[name.partition("-")[0]] for name in NAMES}
        system = {"system_prompt": "Judge."}
        file.write_bytes(jsonl({"name": n, "prompt_template": text} | system for n, text in templates.items()))
        words.append(f"prompts={file}")
    capsys.readouterr()
    main(words)
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    with capsys.disabled():
        print("\n" + "\n".join(line for line in out.splitlines()[:-1] if not line.startswith("judge: 0/")))
    for count in found["counts"].values():
        assert count["judged"] == 160
        assert count["verdicts"] + count["unparsable"] + sum(count["errors"].values()) == 160
        assert all(reason.startswith("400") for reason in count["errors"]), (
            "an over-long prompt is refused, and nothing else went wrong"
        )
    (pair,) = found["pairs"]
    assert pair["win"] + pair["tie"] + pair["loss"] + pair["without_verdict"] == 80
    if prompts == "short":
        assert sum(sum(c["errors"].values()) for c in found["counts"].values()) < 320, "some were judged at all"
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cost"]["spent"]["requests"] == 0
