"""Stages `benchmarks/FILE/MODEL/answers`: the policy's answers at every setting, for judges. Asks no judge.

They are as those of `jobs.answer`, with the setting in the model's name. `jobs.judge`, AlpacaEval and Arena-Hard read
the files.
"""

from functools import partial

from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from jobs.benchmarking.settings import Benchmarking
from jobs.evaluation.answers import Asked, answer_questions, answers_stage, questions_checksum
from jobs.pipelines.sample import sampling_settings
from jobs.runner.preset import Preset
from jobs.runner.rounds import newest_policy
from jobs.runner.stage import Run, Stage


def answer_stages(preset: Benchmarking) -> list[Stage]:
    """File after file, each at all settings."""
    policy, needs = newest_policy(Run(preset))
    made = []
    for file in preset.benchmark.answers.files:
        for setting in preset.benchmark.named_settings:
            work = partial(_work, file=file, setting=setting, policy=policy)
            settings, inputs = partial(_settings, setting=setting), partial(_inputs, file=file)
            name = answers_stage(file, model_name(preset, setting))
            made.append(Stage(name, needs, settings, work, inputs, resumes=True))
    return made


def model_name(preset: Benchmarking, setting: str) -> str:
    """`demo-funny`."""
    return f"{preset.run}-{setting}"


def _settings(preset: Preset, setting: str) -> object:
    assert isinstance(preset, Benchmarking)
    answers, sampling = preset.benchmark.answers, sampling_settings(preset.sampling)
    asked = {"requested": preset.requested(setting), "temperature": answers.temperature, "limit": answers.limit}
    return asked | {"model": model_name(preset, setting), "sampling": sampling, "seed": preset.seed}


def _inputs(run: Run, file: str) -> dict[str, str]:
    return {"questions": questions_checksum(file)}


def _work(run: Run, folder: Storage, file: str, setting: str, policy: str) -> AnswersMetrics:
    preset = run.preset
    assert isinstance(preset, Benchmarking)
    answers, requested = preset.benchmark.answers, preset.requested(setting)
    asked = Asked(file, answers.limit, requested, answers.temperature, model_name(preset, setting))
    return answer_questions(run, folder, run.folder(policy), asked)
