"""Stage `report`: vary attributes alone, together and in mid-conversation, measure the answers, and judge the measure.

    python -m jobs.evaluate PRESET.yaml [key.path=value ...]

In the synthetic world answers are measured exactly, from their text, and the predictor is compared with that. On real
rows the predictor measures, and witnesses beside it: measures of the text by others. The report names the way.
"""

from collections.abc import Iterator

from data.prompts import COMBINED, combined_settings, dialogue_prompts, requested_prompts
from data.run_layout import REPORT, TRAINING, read_record, write_record
from data.stage_metrics import PromotionMetrics, TrainingMetrics
from data.steering_metrics import ReportMetrics, RoundMeasures
from data.storage import Storage
from jobs.evaluation.ask import (
    MeasuredAnswers,
    answered,
    curve_prompts,
    measurable,
    num_unseen,
    other_values,
    questions,
    rated,
    synthetic_world,
)
from jobs.evaluation.deviations import label_deviations
from jobs.evaluation.guidance import guidance_metrics
from jobs.evaluation.steering_metrics import combined, cross_talk, curves, dialogue, judge, judge_note, length
from jobs.evaluation.witnesses import witnesses
from jobs.pipelines.annotation import raters_of
from jobs.pipelines.sample import sampling_settings
from jobs.reporting.figures_steering import draw_cross_talk, draw_judge, draw_rounds, draw_steering
from jobs.reporting.figures_training import draw_losses
from jobs.reporting.figures_witnesses import draw_witnesses
from jobs.reporting.model_card import write_card
from jobs.reporting.page import HTML, write_pages
from jobs.reporting.sections_steering import report_lines
from jobs.reporting.sections_witnesses import witness_lines
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Run, Stage, StageError, log


def work(run: Run, folder: Storage) -> ReportMetrics:
    """Sample, measure, tabulate, draw."""
    stage = Rounds().promoted(run, run.preset.bootstrap.rounds)
    policy = run.folder(stage)
    answers = _answers(run, policy, folder)
    guidance = guidance_metrics(run, policy, folder / "guidance")
    report = _report(run, stage, answers).model_copy(update={"guidance": guidance})
    write_record(folder / REPORT, report)
    _draw(run, answers, report, folder)
    _complete_card(run, policy, report)
    write_pages(run, report, folder)
    for line in (*report_lines(report), *witness_lines(report)):
        log(line)
    log(f"report: {(folder / HTML).uri}")
    return report


def _answers(run: Run, policy: Storage, folder: Storage) -> MeasuredAnswers:
    """Ask the policy, continue the answers at the ends of each scale as dialogues, and rate all of them."""
    settings, schema, seed = run.preset.evaluate, run.schema, run.preset.seed
    (asked, prompts), others = curve_prompts(run, "evaluate"), other_values(run)
    together = [(COMBINED, values) for values in combined_settings(schema, others, settings.num_combinations, seed)]
    prompts += requested_prompts(asked, together, seed, "evaluate")
    log(
        f"evaluate: {len(asked)} questions at {len(prompts) // max(1, len(asked))} settings, {len(together)} of them "
        f"of several attributes: {len(prompts):,} answers"
    )
    rows = answered(run, "evaluate", policy, prompts, folder, rate=True)
    sources = [folder / "answers"]
    further = dialogue_prompts(rows, asked, schema, others, settings.num_dialogues, seed, "evaluate")
    if further:
        log(f"evaluate: {len(further)} of these answers continue as dialogues at the other end of the scale")
        rows += answered(run, "evaluate: dialogue", policy, further, folder / "dialogue", rate=True)
        sources.append(folder / "dialogue" / "answers")
    against = " and is compared with the truth" if synthetic_world(run) else ""
    log(f"evaluate: the predictor rates all {len(rows):,} answers{against}")
    return measurable(run, rated(run, "evaluate", rows, sources, folder / "rated"))


def _report(run: Run, stage: str, answers: MeasuredAnswers) -> ReportMetrics:
    """All metrics of the answers of `stage`'s policy."""
    schema = run.schema
    resampling = run.preset.evaluate.num_resamples, run.preset.seed
    table, best = curves(schema, answers, *resampling, label_deviations(run))
    judged = judge(schema, answers) if synthetic_world(run) else {}
    heard, absent = witnesses(run, answers)
    return ReportMetrics(
        policy=run.folder(stage).uri,
        policy_stage=stage,
        measured_by=answers.measured_by,
        raters=raters_of(run),
        steering=table,
        at_best_settings=best,
        requested_best={name: float(value) for name, value in schema.best().items()},
        cross_talk=cross_talk(schema, answers) if table else None,
        combined=tuple(combined(schema, answers)),
        dialogue=dialogue(schema, answers),
        length=length(schema, answers),
        judge=judged,
        judge_note=judge_note(judged) if judged else "",
        witnesses=heard,
        absent_witnesses=absent,
        rounds=tuple(_rounds(run)),
        counts=_counts(run, answers),
    )


def _counts(run: Run, answers: MeasuredAnswers) -> dict[str, int]:
    """`unseen`: questions that no training row of the policy has."""
    wanted = run.preset.evaluate.num_questions
    counts = {"questions": wanted, "answers": len(answers.rows)}
    return counts if synthetic_world(run) else counts | {"unseen": num_unseen(run, questions(run, wanted))}


def _draw(run: Run, answers: MeasuredAnswers, report: ReportMetrics, folder: Storage) -> None:
    if report.steering:
        draw_steering(run.preset.run, run.schema, report, folder / "steering.png")
    if report.cross_talk:
        draw_cross_talk(report.cross_talk, folder / "cross_talk.png")
    if report.judge:
        draw_judge(run.schema, answers, report.judge, folder / "judge.png")
    draw_witnesses(report, folder / "witnesses.png")
    draw_rounds(run.preset.run, run.schema, report.rounds, folder / "rounds.png")
    draw_losses(_trainings(run), folder / "losses.png")


def _rounds(run: Run) -> Iterator[RoundMeasures]:
    """From the promotion decisions: the policy before the first round, then the one after each round that was run."""
    for number in range(1, run.preset.bootstrap.rounds + 1):
        if decision := run.metrics(Rounds().promotion(number), PromotionMetrics):
            if number == 1:
                yield RoundMeasures(**dict(decision.before), round=0, promoted=True)
            yield RoundMeasures(**dict(decision.after), round=number, promoted=decision.promoted)


def _trainings(run: Run) -> dict[str, TrainingMetrics]:
    """All trainings of the run, by stage."""
    stages = ["base", "predictor", *(Rounds().policy(number) for number in range(run.preset.bootstrap.rounds + 1))]
    files = {name: run.folder(name) / TRAINING for name in stages}
    return {name: read_record(file, TrainingMetrics) for name, file in files.items() if file.exists()}


def _complete_card(run: Run, policy: Storage, report: ReportMetrics) -> None:
    """Add the steering table to the model's card."""
    settings = run.preset.policy.learner if policy.uri == run.folder("policy").uri else run.preset.bootstrap.learner
    training = read_record(policy / TRAINING, TrainingMetrics)
    write_card(run, "policy", settings, training, policy / "model", report)


def require_steering(run: Run) -> None:
    """Raise StageError if an attribute of the finished report steers worse than `evaluate.min_spearman`."""
    least, report = run.preset.evaluate.min_spearman, run.metrics("report", ReportMetrics)
    if least is None or report is None:
        return
    worse = {name: curve.spearman for name, curve in report.steering.items() if (curve.spearman or 0.0) < least}
    if worse:
        found = ", ".join(f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in worse.items())
        raise StageError(
            f"Spearman of requested and measured values is below evaluate.min_spearman {least:g}: {found}; the report "
            f"is in {run.folder('report').uri}; raise policy.learner.epochs, or lower evaluate.min_spearman"
        )


def stage(preset: Preset) -> Stage:
    """The report is about the last policy of the run that was promoted."""
    rounds = range(1, preset.bootstrap.rounds + 1)
    after = (name for number in rounds for name in (Rounds().policy(number), Rounds().promotion(number)))
    return Stage("report", ("rows", "predictor", "policy", *after), _settings, work)


def _settings(preset: Preset) -> object:
    sampling = sampling_settings(preset.sampling)
    return {"evaluate": preset.evaluate, "sampling": sampling, "seed": preset.seed, "lab": preset.rows.lab}


if __name__ == "__main__":
    main(__doc__, lambda preset: [stage(preset)], check=require_steering)
