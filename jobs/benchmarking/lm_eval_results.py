"""What lm-eval wrote: the scores in its results file, and why it ended early. Starts nothing."""

import math
import re
from collections.abc import Mapping
from typing import Any

from data.benchmark_metrics import TaskMetrics, TaskScore
from data.errors import UserError
from data.printable import printable

STDERR = "_stderr"
NO_FILTER = "none"
LAST_LINES = 4
"""Of lm-eval's output, where its end says why it failed."""
NOT_FETCHED = re.compile(
    r"Couldn't reach|LocalEntryNotFoundError|OfflineModeIsEnabled|offline mode|huggingface\.co|"
    r"Couldn't find (?:any data file|cache)|DatasetNotFoundError|DataFilesNotFoundError"
)
"""Signs of data that only the hub has."""


def task_metrics(
    found: Mapping[str, Any], task: str, by: str, setting: str, requested: Mapping[str, float]
) -> TaskMetrics:
    """The record of one task or group from the content of results_*.json; raises UserError if it has no score.

    A group without scores of its own has those of its tasks, as TASK/METRIC.
    """
    own = {**found.get("results", {}), **found.get("groups", {})}
    scores = _scores(own.get(task, {}))
    if not scores:
        parts = found.get("group_subtasks", {}).get(task, [])
        scores = {f"{part}/{name}": score for part in parts for name, score in _scores(own.get(part, {})).items()}
    if not scores:
        raise UserError(
            f"lm-eval's results have no score of task {printable(task)!r}, but of "
            f"{printable(', '.join(own), 200) or 'nothing'}; name one of these in benchmark.lm_eval.tasks"
        )
    version, lm_eval = found.get("versions", {}).get(task), found.get("lm_eval_version")
    named = {"task": version, "lm_eval": lm_eval}
    return TaskMetrics(
        task=task,
        setting=setting,
        requested=dict(requested),
        by=by,
        samples=_samples(found, task),
        num_fewshot=found.get("n-shot", {}).get(task),
        scores=scores,
        versions={name: str(value) for name, value in named.items() if value is not None},
    )


def _samples(found: Mapping[str, Any], task: str) -> int:
    """Questions of a task, or of all tasks of a group."""
    counts = found.get("n-samples", {})
    names = [task] if task in counts else found.get("group_subtasks", {}).get(task, [])
    return sum(int(counts[name]["effective"]) for name in names if name in counts)


def _scores(metrics: Mapping[str, Any]) -> dict[str, TaskScore]:
    """{"acc,none": .5, "acc_stderr,none": .1, "alias": ...} -> {"acc": .5 with its error}."""
    found = {}
    for key, value in metrics.items():
        metric, comma, filter = key.partition(",")
        if not comma or metric.endswith(STDERR) or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        name = metric if filter == NO_FILTER else f"{metric} ({filter})"
        found[name] = TaskScore(value=_finite(value), stderr=_finite(metrics.get(f"{metric}{STDERR},{filter}")))
    return found


def _finite(value: object) -> float | None:
    """lm-eval writes "N/A" where a metric has no standard error."""
    return round(float(value), 6) if isinstance(value, int | float) and math.isfinite(value) else None


def why_failed(output: str, task: str) -> str:
    """The sentence for lm-eval's `output` when it ended with an error."""
    if "Loglikelihood is not supported" in output:
        return f"task {task} compares log-likelihoods; give it by: likelihoods in benchmark.lm_eval.tasks"
    if "Tasks not found" in output:
        return (
            f"lm-eval knows no task {task}; its own are listed by `lm_eval ls tasks`, and one of yours needs its YAML "
            "in the folder benchmark.lm_eval.include_path"
        )
    if module := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", output):
        return (
            f"task {task} needs the package {module[1]} in the environment of lm-eval; install it there (IFEval's are "
            "those of lm-eval[ifeval])"
        )
    end = [line for line in output.splitlines() if line.strip()][-LAST_LINES:]
    if any(map(NOT_FETCHED.search, end)):
        return (
            f"lm-eval could not fetch the data of task {task} from the hub: fetch it where there is a network and set "
            "HF_HOME to that cache, or set benchmark.lm_eval.include_path to the folder of a task whose dataset_path "
            "is json and whose data_files are local"
        )
    return f"lm-eval failed at task {task}: {printable(' | '.join(end), 600)}"
