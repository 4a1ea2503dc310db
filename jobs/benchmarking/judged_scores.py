"""What `jobs.judge` found of the answers at each setting: rows of the table. Reads finished reports, asks no judge."""

import posixpath
from collections.abc import Iterator, Mapping

from data.benchmark_metrics import SettingScores, TaskScore
from data.benchmarks import read_answers, read_questions
from data.errors import UserError
from data.judge_report import JudgedAnswers, JudgeReport, read_judge_report
from data.printable import printable
from data.run_layout import REPORT
from data.steering_metrics import AnswersMetrics
from data.storage import Storage
from data.uris import shown_uri
from jobs.benchmarking.judged_answers import model_name
from jobs.benchmarking.settings import Benchmarking
from jobs.evaluation.answers import answers_stage
from jobs.runner.stage import Run, log, warn


def judged_inputs(run: Run) -> dict[str, str]:
    """Checksums of the reports that are there."""
    assert isinstance(run.preset, Benchmarking)
    reports = [Storage(uri) / REPORT for uri in run.preset.benchmark.answers.judged]
    return {report.uri: report.checksum() for report in reports if report.exists()}


def judged_scores(run: Run, preset: Benchmarking) -> list[SettingScores]:
    """Of every report, the rows of each question file whose answers it judged; what is left out is logged."""
    return [row for uri in preset.benchmark.answers.judged for row in _of_report(run, preset, uri)]


def _of_report(run: Run, preset: Benchmarking, uri: str) -> Iterator[SettingScores]:
    report = read_judge_report(Storage(uri))
    if report is None:
        log(f"no judge has finished in {shown_uri(uri)}: run jobs.judge with output={shown_uri(uri)}")
        return
    models = {setting: model_name(preset, setting) for setting in preset.benchmark.named_settings}
    current: set[str] = set()
    for file in preset.benchmark.answers.files:
        same = {s: m for s, m in models.items() if m in report.answers and _same(run, file, m, report.answers[m])}
        current |= set(same.values())
        yield from _rows(answers_stage(file, "of").split("/")[1], report, same, set(models.values()))
    if changed := [model for model in models.values() if model in report.answers and model not in current]:
        warn(
            f"{shown_uri(uri)}: the answers of {', '.join(changed)} are not those that were judged, so they have no "
            "scores; run jobs.judge again"
        )
    elif not current:
        warn(
            f"{shown_uri(uri)} has no scores of answers of {', '.join(models.values())}: its report names none of "
            "them; run jobs.judge with their files in `answers`"
        )


def _same(run: Run, file: str, model: str, judged: JudgedAnswers) -> bool:
    """Did the judge see the answers that are there now, to the first questions of this file?"""
    stage = answers_stage(file, model)
    found, questions = run.metrics(stage, AnswersMetrics), read_questions(file, judged.questions)
    if found is None or len(questions) < judged.questions:
        return False
    try:
        # A run may have moved since it named its file.
        answers = read_answers((run.folder(stage) / posixpath.basename(found.answers)).uri)
        return answers.digest(questions) == judged.digest
    except UserError:  # other questions, or more of them
        return False


def _rows(task: str, report: JudgeReport, models: Mapping[str, str], ours: set[str]) -> Iterator[SettingScores]:
    """`models`: setting -> the model whose answers are the judged ones."""
    samples = max((report.answers[model].questions for model in models.values()), default=0)
    met = dict.fromkeys(other for model in models.values() for other in report.opponents(model))
    judge = printable(report.judge)
    for other in met:
        # The run's own settings meet each other, too; one of them is a column's rival only as the reference.
        if other not in ours or other == report.reference_model:
            at = {setting: report.win_rate(model, other) for setting, model in models.items()}
            yield _row(task, f"win rate against {printable(other)}, judged by {judge}", samples, at)
    ratings = {setting: report.rating(model) for setting, model in models.items()}
    if any(ratings.values()):
        yield _row(task, f"rating of 10 by {judge}", samples, ratings)


def _row(task: str, metric: str, samples: int, at: Mapping[str, TaskScore | None]) -> SettingScores:
    known = {setting: score for setting, score in at.items() if score}
    return SettingScores(task=task, metric=metric, samples=samples, at=known)
