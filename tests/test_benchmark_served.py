"""`jobs.benchmark` with the real lm-eval and a served policy, at two settings (`make test-clients`).

lm-eval has an environment of its own, which the target installs.
"""

import json
from pathlib import Path

import pytest
import torch
from support import client_environments
from support.annotated_run import predictor_stage
from support.benchmark_run import SETTINGS, made
from support.clients.lm_eval_tasks import write_tasks
from support.endpoint import running
from support.manifests import finish, metrics_of

from actors.modeling.policy import Policy
from data.benchmark_metrics import BenchmarkTable, TaskMetrics
from data.conversation import Message
from data.stage_metrics import StageMetrics
from data.storage import Storage
from jobs.benchmark import stages
from jobs.runner.stage import Run, Stage, StageError, perform
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROWS = [
    {"question": "Owls are", "choices": ["birds.", "ships."], "answer": 0},
    {"question": "Bees dance", "choices": ["and guard ships.", "at night.", "é"], "answer": 1},
    {"question": "The moon is", "choices": ["round.", "a bee."], "answer": 0},
]
WITHIN = 1e-3
"""Of a text's log-likelihood, in nats."""


def python() -> Path:
    if missing := client_environments.why_missing("lm-eval"):
        pytest.skip(missing)
    return client_environments.folder_of("lm-eval") / "bin" / "python"


def with_models(folder: Path, policy: str, predictor: str, *words: str) -> Run:
    """A run whose policy and predictor have random weights, and local tasks."""
    tasks = folder / "tasks"
    tasks.mkdir()
    write_tasks(tasks, ROWS)
    ranked = {"id": "0", "prompt": "Why?", "chosen": ["Owls."], "rejected": ["No.", "Bees.", "?"], "subset": "Focus"}
    (folder / "ranked.jsonl").write_text(json.dumps(ranked) + "\n")
    own = [f"storage={folder / 'runs'}", f"benchmark.lm_eval.include_path={tasks}", SETTINGS]
    own += [f"benchmark.lm_eval.python={python()}", f"benchmark.rewardbench.uri={folder / 'ranked.jsonl'}"]
    run = Run(made(*own, *words))

    def work(run: Run, folder: Storage) -> StageMetrics:
        (folder / "model").upload(policy)
        return StageMetrics()

    perform(run, Stage("policy", (), lambda preset: {}, work))
    finish(run.root, "rows")
    perform(run, predictor_stage(predictor))
    return run


@torch.inference_mode()
def log_likelihood(policy: Policy, question: str, requested: dict[str, float], choice: str) -> float:
    """Transformers' own, of the choice behind the prompt of a setting."""
    prompt = policy.prompt("", [Message("user", question)], requested)
    ids = [*prompt, *policy.tokenizer(choice, add_special_tokens=False).input_ids]
    logprobs_TV = policy.model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)
    own_T = logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None])[len(prompt) - 1 :, 0]
    return float(own_T.double().sum())


def test_two_settings_end_to_end(
    ray_cluster: object, tiny_policy: str, tiny_predictor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    tasks = "benchmark.lm_eval.tasks=[{name: owls_written, limit: 2}, {name: owls_chosen, by: likelihoods}]"
    with running([Located(tiny_policy, "demo")], max_new_tokens=64) as endpoint:
        where = f"benchmark.endpoint.base_url={endpoint.url}/v1"
        run = with_models(tmp_path, tiny_policy, tiny_predictor, where, tasks)
        done = {stage.name: perform(run, stage) for stage in stages(run.preset)}
        assert all(perform(run, stage).skipped for stage in stages(run.preset))
        wrong = Run(made(*map(str, _words(run)), where, "benchmark.lm_eval.tasks=[{name: owls_chosen}]"))
        with pytest.raises(StageError, match="give it by: likelihoods"):
            perform(wrong, stages(wrong.preset)[0])
    table = metrics_of(done["benchmarks/table"], BenchmarkTable)
    assert {row.task: row.samples for row in table.scores} == {"owls_written": 2, "owls_chosen": 3}
    assert all(row.at.keys() == {"plain", "funny"} for row in table.scores)
    assert table.rewardbench
    assert table.rewardbench.prompts == 1
    page = (run.folder("benchmarks/table") / "report.html").read_text()
    assert "owls_chosen" in page
    policy = Policy.load(tiny_policy)
    for setting in ("plain", "funny"):
        written = run.folder(f"benchmarks/lm_eval/{setting}/owls_written/scores")
        requested = metrics_of(done[f"benchmarks/lm_eval/{setting}/owls_chosen/scores"], TaskMetrics).requested
        assert (written / "results.json").read_json()["config"]["gen_kwargs"]["attributes"] == requested
        _check_likelihoods(run, policy, setting, requested)


def _words(run: Run) -> list[str]:
    settings = run.preset.model_dump()["benchmark"]["lm_eval"]
    return [
        f"storage={run.preset.storage}",
        f"benchmark.lm_eval.python={settings['python']}",
        f"benchmark.lm_eval.include_path={settings['include_path']}",
    ]


def _check_likelihoods(run: Run, policy: Policy, setting: str, requested: dict[str, float]) -> None:
    """lm-eval's of each choice differ from transformers' own by a constant at most: it may count the prompt's end."""
    samples = (run.folder(f"benchmarks/lm_eval/{setting}/owls_chosen/scores") / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in samples.splitlines()]
    assert len(lines) == len(ROWS)
    for line in lines:
        doc = line["doc"]
        found = [float(resps[0][0]) for resps in line["resps"]]
        own = [log_likelihood(policy, doc["question"], requested, choice) for choice in doc["choices"]]
        gaps = [a - b for a, b in zip(found, own, strict=True)]
        assert max(gaps) - min(gaps) < WITHIN, (setting, doc["question"], found, own)
