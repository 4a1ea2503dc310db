"""Stages `benchmarks/lm_eval/SETTING/TASK/scores`: a task of lm-eval, asked of the endpoint at one setting.

lm-eval is a program in an environment of its own. Each pair of task and setting is a stage, so that a finished one is
not run again. Answers come through chat, where the request has the attributes. Likelihoods come through raw
completions, which have none: there lm-eval writes the prompts, with a copy of the policy's tokenizer whose chat
template has the setting as its attributes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data.benchmark_metrics import TaskMetrics
from data.errors import UserError
from data.printable import printable
from data.run_layout import BENCHMARKS, MODEL
from data.storage import Storage
from jobs.benchmarking.endpoint import ServedModel, bearer, served_model
from jobs.benchmarking.lm_eval_results import task_metrics, why_failed
from jobs.benchmarking.settings import Benchmarking, LmEvalTask
from jobs.runner.preset import Preset
from jobs.runner.rounds import newest_policy
from jobs.runner.stage import Run, Stage, StageError, log

INSTALL = "'lm-eval[api,ifeval]==0.4.13' transformers"
"""What pip installs; `make test-clients` runs this version."""
RESULTS, SAMPLES = "results.json", "samples.jsonl"
PROGRESS_S = 30.0
KEPT_LINES = 5000
"""Of lm-eval's output, for the sentence about its failure."""
CHAT_TEMPLATE = "chat_template.jinja"
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
"""Ends of files that a tokenizer does not need."""


def lm_eval_stages(preset: Benchmarking) -> list[Stage]:
    """Setting after setting, each with all tasks."""
    policy, needs = newest_policy(Run(preset))
    tasks = preset.benchmark.lm_eval.tasks
    return [
        Stage(
            stage_name(setting, task),
            needs,
            partial(_settings, setting=setting, task=task),
            partial(_work, setting=setting, task=task, policy=policy),
            _inputs,
        )
        for setting in preset.benchmark.named_settings
        for task in tasks
    ]


def stage_name(setting: str, task: LmEvalTask) -> str:
    return f"{BENCHMARKS}/lm_eval/{setting}/{task.name}/scores"


def _settings(preset: Preset, setting: str, task: LmEvalTask) -> object:
    assert isinstance(preset, Benchmarking)
    benchmark = preset.benchmark
    return {
        "requested": preset.requested(setting),
        "task": task,
        "model": benchmark.endpoint.model,
        "gen_kwargs": benchmark.lm_eval.gen_kwargs,
    }


def _inputs(run: Run) -> dict[str, str]:
    """The program's version, and a checksum of the task files. Raises UserError if one of the two is not there."""
    assert isinstance(run.preset, Benchmarking)
    settings = run.preset.benchmark.lm_eval
    found = {"lm_eval": installed_version(settings.python or sys.executable)}
    if settings.include_path:
        if not os.path.isdir(settings.include_path):
            raise UserError(
                f"benchmark.lm_eval.include_path is {settings.include_path}, but there is no such folder; set it to "
                "one with task files (YAML)"
            )
        found["include_path"] = Storage(settings.include_path).checksum()
    return found


def installed_version(python: str) -> str:
    """The version of lm-eval in the environment of `python`; raises UserError with the command that installs it."""
    words = [python, "-c", "import importlib.metadata as m; print(m.version('lm-eval'))"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=_environ())
    except OSError as error:
        raise UserError(
            f"benchmark.lm_eval.python is {python}, which does not start ({error.strerror}); set it to the python of "
            "the environment with lm-eval"
        ) from None
    if done.returncode:
        raise UserError(
            f"lm-eval is not installed for {python}; install it into an environment of its own, `python -m venv "
            f".venv-lm-eval && .venv-lm-eval/bin/pip install {INSTALL}`, and set "
            "benchmark.lm_eval.python=.venv-lm-eval/bin/python"
        )
    return done.stdout.strip()


def _work(run: Run, folder: Storage, setting: str, task: LmEvalTask, policy: str) -> TaskMetrics:
    preset = run.preset
    assert isinstance(preset, Benchmarking)
    requested = preset.requested(setting)
    served = served_model(preset.benchmark.endpoint, run.schema)
    values = ", ".join(f"{name} {value:g}" for name, value in requested.items())
    log(f"benchmark: task {task.name} at setting {setting}: {values}")
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = ""
        if task.by == "likelihoods":
            tokenizer = steered_tokenizer(run.folder(policy) / MODEL, requested, f"{temporary}/tokenizer")
        output = Path(temporary) / "output"
        _run(command(preset, task, requested, served, tokenizer, str(output)), preset, task)
        found = _kept(output, folder, task)
    metrics = task_metrics(found, task.name, task.by, setting, requested)
    shown = ", ".join(f"{name} {score.value}" for name, score in metrics.scores.items())
    log(f"benchmark: task {task.name} at setting {setting}: {shown}")
    return metrics


def command(
    preset: Benchmarking,
    task: LmEvalTask,
    requested: Mapping[str, float],
    served: ServedModel,
    tokenizer: str,
    output: str,
) -> list[str]:
    """lm-eval's command line; `tokenizer`: the folder, for likelihoods only."""
    settings, base_url = preset.benchmark.lm_eval, preset.benchmark.endpoint.base_url.rstrip("/")
    model: dict[str, Any] = {"model": served.name, "num_concurrent": settings.concurrency}
    gen_kwargs = dict(settings.gen_kwargs)
    if tokenizer:
        kind, path = "local-completions", "completions"
        model |= {"tokenizer": tokenizer, "tokenizer_backend": "huggingface", "max_length": served.max_tokens}
    else:
        kind, path = "local-chat-completions", "chat/completions"
        gen_kwargs["attributes"] = dict(requested)
    words = ["--model", kind, "--model_args", json.dumps(model | {"base_url": f"{base_url}/{path}"})]
    words += ["--tasks", task.name, "--output_path", output, "--log_samples"]
    words += ["--apply_chat_template", "--fewshot_as_multiturn", "true"]
    if not tokenizer:
        words += ["--gen_kwargs", json.dumps(gen_kwargs)]
    if task.num_fewshot is not None:
        words += ["--num_fewshot", str(task.num_fewshot)]
    if task.limit:
        words += ["--limit", str(task.limit)]
    if settings.include_path:
        words += ["--include_path", settings.include_path]
    return [settings.python or sys.executable, "-m", "lm_eval", "run", *words]


def _run(words: list[str], preset: Benchmarking, task: LmEvalTask) -> None:
    """Raises StageError if lm-eval fails."""
    environ = _environ() | {"OPENAI_API_KEY": bearer(preset.benchmark.endpoint)}
    code, output = followed(words, environ, f"benchmark: task {task.name}")
    if code:
        raise StageError(why_failed(output, task.name))


def followed(words: list[str], environ: dict[str, str], what: str, every_s: float = PROGRESS_S) -> tuple[int, str]:
    """Exit code and last lines of a program that may take hours; its newest line is shown every `every_s`.

    A bar that draws itself anew ends its lines with a carriage return, and each counts as a line.
    """
    process = subprocess.Popen(
        words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    said: deque[str] = deque(maxlen=KEPT_LINES)
    shown = time.monotonic()
    assert process.stdout
    try:
        for line in process.stdout:
            said.append(line)
            if line.strip() and time.monotonic() - shown >= every_s:
                shown = time.monotonic()
                log(f"{what}: {printable(line.strip(), 160)}")
        return process.wait(), "".join(said)
    finally:
        process.kill()  # nothing after its end; the job may be stopped meanwhile
        process.wait()


def _environ() -> dict[str, str]:
    """Without what is Ray's, and without our own packages in its path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"}
    return kept | {"PYTHONSAFEPATH": "1"}


def _kept(output: Path, folder: Storage, task: LmEvalTask) -> Any:
    """Keep lm-eval's files in the stage's folder; returns the content of its results."""
    results, samples = sorted(output.rglob("results_*.json")), sorted(output.rglob("samples_*.jsonl"))
    if len(results) != 1:
        raise StageError(f"lm-eval left {len(results)} files of results of task {task.name}; one is expected")
    (folder / RESULTS).put(str(results[0]))
    (folder / SAMPLES).write_bytes(b"".join(file.read_bytes() for file in samples))
    return json.loads(results[0].read_text())


def steered_tokenizer(model: Storage, requested: Mapping[str, float], folder: str) -> str:
    """A copy of the policy's tokenizer in `folder`, whose chat template writes these attributes unless told others."""
    for name in (name for name in model.names() if not name.endswith(WEIGHTS)):
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        model.fs.get_file((model / name).path, str(target))
    file = Path(folder) / CHAT_TEMPLATE
    if not file.exists():
        raise StageError(
            f"{model.uri} has no {CHAT_TEMPLATE}, so no prompt can have attributes; train the policy again with this "
            "version, or test with by: answers"
        )
    file.write_text(f"{{%- set attributes = {json.dumps(dict(requested))} -%}}\n{file.read_text()}")
    return folder
