"""lm-eval as a program: its command line at a setting, what is not run again, and what is missing."""

import itertools
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support import client_environments
from support.benchmark_run import described, made, with_fake
from support.manifests import metrics_of
from transformers import AutoTokenizer

from actors.modeling.policy import PolicyText
from data.benchmark_metrics import BenchmarkTable, TaskMetrics
from data.conversation import Message
from data.errors import UserError
from data.storage import Storage
from jobs.benchmark import stages
from jobs.benchmarking.endpoint import ServedModel, served_model
from jobs.benchmarking.lm_evaluation import INSTALL, command, followed, installed_version, steered_tokenizer
from jobs.benchmarking.settings import BenchmarkEndpoint
from jobs.runner.stage import Performed, Run, StageError, perform

TASKS = "benchmark.lm_eval.tasks=[{name: owls}, {name: bees, limit: 3, num_fewshot: 2}]"
SERVED = ServedModel("demo", 512)


def performed(run: Run) -> dict[str, Performed]:
    return {stage.name: perform(run, stage) for stage in stages(run.preset)}


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "calls.jsonl"
    monkeypatch.setenv("FAKE_LM_EVAL_LOG", str(file))
    return file


def test_answers_come_through_chat_with_the_attributes_in_the_request() -> None:
    preset = made(TASKS, "benchmark.lm_eval.gen_kwargs={max_gen_toks: 64}", "benchmark.lm_eval.include_path=tasks")
    bees = preset.benchmark.lm_eval.tasks[1]
    words = command(preset, bees, {"humor": 4}, SERVED, "", "out")
    given = dict(itertools.pairwise(words))
    assert words[:4] == [sys.executable, "-m", "lm_eval", "run"]
    assert given["--model"] == "local-chat-completions"
    assert json.loads(given["--gen_kwargs"]) == {"max_gen_toks": 64, "attributes": {"humor": 4}}
    assert json.loads(given["--model_args"])["base_url"] == "http://127.0.0.1:8000/v1/chat/completions"
    assert (given["--limit"], given["--num_fewshot"], given["--include_path"]) == ("3", "2", "tasks")
    assert "--limit" not in command(preset, preset.benchmark.lm_eval.tasks[0], {}, SERVED, "", "out")


def test_likelihoods_come_through_completions_with_a_tokenizer_that_knows_the_attributes() -> None:
    preset = made(TASKS)
    words = command(preset, preset.benchmark.lm_eval.tasks[0], {"humor": 4}, SERVED, "tokenizer", "out")
    given = dict(itertools.pairwise(words))
    arguments = json.loads(given["--model_args"])
    assert given["--model"] == "local-completions"
    assert arguments["base_url"] == "http://127.0.0.1:8000/v1/completions"
    assert (arguments["tokenizer"], arguments["max_length"], arguments["model"]) == ("tokenizer", 512, "demo")
    assert "--gen_kwargs" not in given
    assert "--apply_chat_template" in words


def test_the_copied_tokenizer_writes_the_prompt_of_the_setting(tiny_policy: str, tmp_path: Path) -> None:
    requested = {"helpfulness": 4.0, "creativity": 0.0, "humor": 3.0, "toxicity": 0.0, "verbosity": 2.0}
    folder = steered_tokenizer(Storage(tiny_policy), requested, str(tmp_path / "tokenizer"))
    assert not list(Path(folder).glob("*.safetensors"))
    chat = [{"role": "user", "content": "Why?"}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    ours = PolicyText.load(tiny_policy).prompt("", [Message("user", "Why?")], requested)
    assert list(ids) == list(ours)


def test_a_policy_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(StageError, match=r"has no chat_template.jinja.*by: answers"):
        steered_tokenizer(Storage(str(tmp_path / "model")), {}, str(tmp_path / "tokenizer"))


def test_scores_against_settings_and_a_finished_pair_is_not_run_again(tmp_path: Path, log: Path) -> None:
    with described() as url:
        run = with_fake(tmp_path, TASKS, f"benchmark.endpoint.base_url={url}")
        first = performed(run)
        assert [call["given"]["--tasks"] for call in calls(log)] == ["owls", "bees", "owls", "bees"]
        assert all("PYTHONPATH" not in c["environ"] and c["environ"]["OPENAI_API_KEY"] == "none" for c in calls(log))
        funny = metrics_of(first["benchmarks/lm_eval/funny/owls/scores"], TaskMetrics)
        assert (funny.scores["acc"].value, funny.samples, funny.requested["humor"]) == (1, 4, 4)
        folder = run.folder("benchmarks/lm_eval/funny/owls/scores")
        assert (folder / "results.json").read_json()["versions"] == {"owls": 1.0}
        assert (folder / "samples.jsonl").read_text() == '{"doc_id": 0}\n'
        table = metrics_of(first["benchmarks/table"], BenchmarkTable)
        assert [(row.task, row.metric) for row in table.scores] == [("owls", "acc"), ("bees", "acc")]
        assert {name: score.value for name, score in table.scores[0].at.items()} == {"plain": 0, "funny": 1}
        assert (run.folder("benchmarks/table") / "benchmarks.json").read_json()["settings"]["funny"]["humor"] == 4
        assert all(done.skipped for done in performed(run).values())
        more = with_fake(tmp_path, TASKS.replace("limit: 3", "limit: 4"), f"benchmark.endpoint.base_url={url}")
        again = performed(more)
    assert [name for name, done in again.items() if not done.skipped] == [
        "benchmarks/lm_eval/plain/bees/scores",
        "benchmarks/lm_eval/funny/bees/scores",
        "benchmarks/table",
    ], "a changed task runs again, and only that one"


def test_a_run_that_failed_goes_on_with_the_pair_that_is_missing(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with described() as url:
        run = with_fake(tmp_path, TASKS, f"benchmark.endpoint.base_url={url}")
        monkeypatch.setenv("FAKE_LM_EVAL_FAILS", "bees")
        with pytest.raises(StageError, match="task bees compares log-likelihoods; give it by: likelihoods"):
            performed(run)
        monkeypatch.delenv("FAKE_LM_EVAL_FAILS")
        done = performed(run)
    assert [call["given"]["--tasks"] for call in calls(log)] == ["owls", "bees", "bees", "owls", "bees"]
    assert done["benchmarks/lm_eval/plain/owls/scores"].skipped


def test_task_files_are_a_part_of_what_was_run(tmp_path: Path, log: Path) -> None:
    tasks = tmp_path / "tasks"
    words = ["benchmark.lm_eval.tasks=[{name: owls}]", f"benchmark.lm_eval.include_path={tasks}"]
    with described() as url:
        run = with_fake(tmp_path, *words, f"benchmark.endpoint.base_url={url}")
        with pytest.raises(UserError, match=r"include_path is .*tasks, but there is no such folder"):
            performed(run)
        tasks.mkdir()
        (tasks / "owls.yaml").write_text("task: owls")
        performed(run)
        (tasks / "owls.yaml").write_text("task: owls\nnum_fewshot: 1")
        assert not any(done.skipped for done in performed(run).values())


def test_without_lm_eval_the_sentence_has_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lm-eval is not installed for .*venv-lm-eval/bin/pip install 'lm-eval\[api"):
        installed_version(sys.executable)
    with pytest.raises(UserError, match=r"benchmark.lm_eval.python is .*nowhere, which does not start"):
        installed_version(str(tmp_path / "nowhere"))


def test_the_version_to_install_is_the_one_that_is_tested() -> None:
    tested = tomllib.loads(client_environments.VERSIONS.read_text())["python"]["lm-eval"][0]
    assert tested.partition("==")[2] in INSTALL


def test_an_endpoint_that_serves_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = made(TASKS).schema_
    with described() as url:
        settings = BenchmarkEndpoint(base_url=url)
        assert served_model(settings, schema) == SERVED
        with pytest.raises(UserError, match=r"/attributes answers 404 .*python -m serve"):
            served_model(BenchmarkEndpoint(base_url=f"{url}/v2"), schema)
        monkeypatch.delenv("STEERLM_TEST_KEY", raising=False)
        with pytest.raises(UserError, match="STEERLM_TEST_KEY is not set"):
            served_model(BenchmarkEndpoint(base_url=url, key_variable="STEERLM_TEST_KEY"), schema)
    with pytest.raises(UserError, match=r"no endpoint answers at .*start it with `python -m serve"):
        served_model(settings, schema)
    with (
        described(fingerprint="0", schema="helpsteer") as url,
        pytest.raises(UserError, match=r"serves 'demo' with the attribute schema 'helpsteer', and the run has 'lab'"),
    ):
        served_model(BenchmarkEndpoint(base_url=url), schema)


def test_a_long_program_shows_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('begins', flush=True); print('Requesting API:  10%\\r', end='', flush=True); raise SystemExit(3)"
    assert followed([sys.executable, "-c", code], dict(os.environ), "task owls", every_s=0)[0] == 3
    assert capsys.readouterr().out.splitlines() == ["task owls: begins", "task owls: Requesting API:  10%"]
    assert followed([sys.executable, "-c", code], dict(os.environ), "task owls")[1] == "begins\nRequesting API:  10%\n"
    assert capsys.readouterr().out == ""
