"""What lm-eval writes: results of tasks and groups, and the ends of runs that failed."""

import re
from typing import Any

import pytest

from data.benchmark_metrics import TaskScore
from data.errors import UserError
from jobs.benchmarking.lm_eval_results import task_metrics, why_failed

GSM8K: dict[str, Any] = {
    "results": {
        "gsm8k": {
            "name": "gsm8k",
            "alias": "gsm8k",
            "sample_len": 8,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.1637,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": "N/A",
        }
    },
    "n-samples": {"gsm8k": {"original": 1319, "effective": 8}},
    "n-shot": {"gsm8k": 5},
    "versions": {"gsm8k": 3.0},
    "lm_eval_version": "0.4.13",
}


def test_every_metric_of_a_task_with_its_filter_and_its_error() -> None:
    found = task_metrics(GSM8K, "gsm8k", "answers", "funny", {"humor": 4})
    assert found.scores == {
        "exact_match (strict-match)": TaskScore(value=0.25, stderr=0.1637),
        "exact_match (flexible-extract)": TaskScore(value=0.5, stderr=None),
    }
    assert (found.samples, found.num_fewshot, found.versions) == (8, 5, {"task": "3.0", "lm_eval": "0.4.13"})
    assert (found.setting, found.requested, found.by) == ("funny", {"humor": 4}, "answers")


def test_a_group_has_its_own_scores_or_those_of_its_tasks() -> None:
    parts = {f"bbh_{name}": {"acc,none": value} for name, value in (("a", 0.5), ("b", float("nan")))}
    counts = {name: {"original": 9, "effective": 4} for name in parts}
    group = {"results": parts | {"bbh": {"alias": "bbh"}}, "group_subtasks": {"bbh": list(parts)}, "n-samples": counts}
    found = task_metrics(group, "bbh", "answers", "a", {})
    assert found.scores == {"bbh_a/acc": TaskScore(value=0.5), "bbh_b/acc": TaskScore(value=None)}
    assert found.samples == 8
    averaged = group | {"groups": {"bbh": {"acc,none": 0.4, "acc_stderr,none": 0.02}}}
    assert task_metrics(averaged, "bbh", "answers", "a", {}).scores == {"acc": TaskScore(value=0.4, stderr=0.02)}


def test_results_of_another_task_are_an_error_that_names_them() -> None:
    with pytest.raises(UserError, match=r"no score of task 'ifeval', but of gsm8k"):
        task_metrics(GSM8K, "ifeval", "answers", "a", {})


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("NotImplementedError: Loglikelihood is not supported for chat completions.", "by: likelihoods in"),
        ("ValueError: Tasks not found: owls", "knows no task owls; .* in the folder benchmark.lm_eval.include_path"),
        ("ModuleNotFoundError: No module named 'langdetect'", "needs the package langdetect in the environment"),
        ("ConnectionError: Couldn't reach 'google/IFEval' on the Hub", "could not fetch the data .*include_path"),
        ("huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach", "could not fetch the data"),
        ("see huggingface.co\na\nb\n\nc\nd\nRuntimeError: e", r"failed at task owls: b \| c \| d \| RuntimeError: e"),
    ],
)
def test_why_it_failed_is_a_sentence_with_the_fix(output: str, said: str) -> None:
    assert re.search(said, why_failed(output, "owls"))
