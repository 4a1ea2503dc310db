"""Questions asked at every setting, the measured answers, and the steering table, for report, promotion and ablation.

In the synthetic world answers are measured exactly, from their text; on real rows by the predictor. `measured_by`
names the way.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.attributes import AttributeSchema, Values
from data.calibration import Calibration
from data.conversation import Conversation, Message, from_table
from data.examples import bucket, buckets_for
from data.lab import LAB, Lab
from data.measures import mean_absolute_gap, steering
from data.prompts import BEST, Prompt, prompts_table, steering_prompts
from data.shards import Input
from data.stage_metrics import Means
from data.steering_metrics import SteeringCurve
from data.storage import Storage
from data.text_rater import PREDICTOR
from jobs.evaluation.predictor_quality import plain
from jobs.pipelines.annotation import annotate, calibration, raters_of
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.over_files import over_files, rows_in
from jobs.pipelines.sample import sample
from jobs.pipelines.sample_and_rate import sample_and_rate
from jobs.runner.needs import one_pool
from jobs.runner.stage import Run

Measure = Callable[[Conversation], Values]


@dataclass(frozen=True)
class MeasuredAnswers:
    """The answers of a policy, in the order of the rows' ids, and how they are measured."""

    rows: list[Conversation]
    measured_by: str
    measure: Measure

    @cached_property
    def measured(self) -> list[tuple[Conversation, Values]]:
        """Each row with the values of its last answer."""
        return [(row, self.measure(row)) for row in self.rows]


def ask(
    run: Run, what: str, policy: Storage, prompts: Sequence[Prompt], folder: Storage, rate: bool = False
) -> MeasuredAnswers:
    """Ask `policy` all `prompts` at the temperature of the evaluation; all files lie in `folder`.

    The predictor rates the answers where nothing better is known, and with `rate` in any case.
    """
    rate = rate or not synthetic_world(run)
    rows = answered(run, what, policy, prompts, folder, rate)
    if rate:
        rows = rated(run, what, rows, [folder / "answers"], folder / "rated")
    return measurable(run, rows)


def answered(
    run: Run, what: str, policy: Storage, prompts: Sequence[Prompt], folder: Storage, rate: bool
) -> list[Conversation]:
    """The answers of `policy` to all `prompts`; both lie in `folder`. With `rate` they are rated if one pool can."""
    write_table(prompts_table(prompts), folder / "prompts")
    temperature = run.preset.evaluate.temperature
    if rate and one_pool(run.preset):
        target = folder / "rated"
        sample_and_rate(run, f"{what}: sample and rate", policy, folder / "prompts", target, temperature)
    else:
        target = folder / "answers"
        sample(run, f"{what}: sample", policy, folder / "prompts", target, temperature)
    return rows_by_id(target)


def rated(
    run: Run, what: str, rows: Sequence[Conversation], answers: list[Storage], target: Storage
) -> list[Conversation]:
    """The `rows` that `answered` gave for `rate`, with the predictor's values, in the order of their ids.

    Where one pool has not rated them, those that lie in `answers` are rated into `target`.
    """
    if one_pool(run.preset):
        return sorted(rows, key=_id)
    annotate(run, f"{what}: rate", answers, target)
    return rows_by_id(target)


def rows_by_id(folder: Storage) -> list[Conversation]:
    """All rows of a folder, in the order of their ids."""
    return sorted((row for table in folder.tables() for row in from_table(table)), key=_id)


def _id(row: Conversation) -> str:
    return row.id


def measurable(run: Run, rows: list[Conversation]) -> MeasuredAnswers:
    """The rows with the best known measure: the synthetic world's, or else the values of stage annotated's raters."""
    if world := synthetic_world(run):
        return MeasuredAnswers(rows, "exactly, from the text", lambda row: world.measure(row.messages))
    as_label = calibration(run) if run.preset.policy.spread_labels else Calibration()
    others = {name: who for name, who in raters_of(run).items() if who != PREDICTOR}
    given = ", ".join(f"{name} by {who}" for name, who in others.items())
    by = f"by the predictor ({given})" if given else "by the predictor"
    return MeasuredAnswers(rows, by, lambda row: as_label(row.predicted[-1]))


def synthetic_world(run: Run) -> Lab | None:
    """The synthetic world that the run's rows come from; None for real rows."""
    return Lab(run.preset.rows.lab) if any(s.format == LAB for s in run.preset.rows.sources) else None


def questions(run: Run, wanted: int, for_promotion: bool = False) -> list[list[Message]]:
    """First user messages to ask: the synthetic world's, or those of groups that the policy did not train on.

    Where these are too few, questions from training follow. A promotion takes other questions than the report, if
    there are enough.
    """
    if world := synthetic_world(run):
        return [[Message("user", q)] for q in world.questions(wanted, run.preset.seed + for_promotion)]
    held_out, trained = _first_questions(run)
    ordered = [
        q for part in (held_out, trained) for q in sorted(part, key=lambda q: (part[q], q), reverse=for_promotion)
    ]
    return [[Message("user", q)] for q in ordered[:wanted]]


def num_unseen(run: Run, asked: Sequence[Sequence[Message]]) -> int:
    """How many of these questions no conversation asks that the policy was trained on."""
    if synthetic_world(run):
        return len(asked)
    _, trained = _first_questions(run)
    return sum(messages[0].content not in trained for messages in asked)


def _first_questions(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Question -> its group, of those that training never saw, and of those that it did, in whatever source."""
    buckets = buckets_for(run.preset.policy.validation_share)
    trained: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for some in over_files("questions", run.folder("rows") / "rows", _first_messages, buckets):
        trained.update(some[0])
        held_out.update(some[1])
    return {q: group for q, group in held_out.items() if q not in trained}, trained


def curve_prompts(run: Run, source: str) -> tuple[list[list[Message]], list[Prompt]]:
    """The report's questions, and each of them with every attribute at values of its scale, and all at best."""
    settings, schema, seed = run.preset.evaluate, run.schema, run.preset.seed
    asked = questions(run, settings.num_questions)
    return asked, steering_prompts(asked, schema, other_values(run), seed, source, settings.num_values)


def other_values(run: Run) -> Values:
    """What is requested of the attributes that are not varied."""
    return run.schema.best() if run.preset.evaluate.others == "best" else {}


def _first_messages(files: Sequence[Input], buckets: int) -> tuple[dict[str, str], dict[str, str]]:
    """First message -> its group: of what a policy that held out one of `buckets` trained on, and of the rest."""
    trained: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for row in rows_in(files):
        part = held_out if buckets and bucket(row.group, buckets) == 0 else trained
        part[row.messages[0].content] = row.group
    return trained, held_out


def tabulate(schema: AttributeSchema, answers: MeasuredAnswers) -> tuple[dict[str, SteeringCurve], Means]:
    """The steering table, one entry per attribute that was varied, and the mean of every attribute at best settings."""
    varied: dict[str, list[tuple[float, Values]]] = defaultdict(list)
    best: dict[str, list[float]] = defaultdict(list)
    for row, values in answers.measured:
        if row.group == BEST:
            for name, value in values.items():
                best[name].append(value)
        elif row.group in schema.names:
            varied[row.group].append((row.requested[-1][row.group], values))
    table = {name: _curve(name, *zip(*varied[name], strict=True)) for name in schema.names if name in varied}
    return table, {name: round(float(np.mean(values)), 4) for name, values in best.items()}


def _curve(name: str, requested: Sequence[float], values: Sequence[Values]) -> SteeringCurve:
    """One varied attribute: its own measured values, and how far the others moved."""
    own = [v.get(name, np.nan) for v in values]
    others = {other for v in values for other in v if other != name}
    gaps = [mean_absolute_gap(requested, [v.get(other, np.nan) for v in values]) for other in sorted(others)]
    gap = round(float(np.mean(gaps)), 4) if gaps else 0.0
    return SteeringCurve(**plain(steering(requested, own)), mean_absolute_gap=gap)


def mean_spearman(table: Mapping[str, SteeringCurve]) -> float:
    """Over all varied attributes; one that does not move at all counts as 0."""
    values = [curve.spearman or 0.0 for curve in table.values()]
    return round(float(np.mean(values)), 4) if values else 0.0


def gap_at_best(schema: AttributeSchema, at_best: Values) -> float:
    """How far the means at best settings are from the request, mean over attributes, in points of the scale."""
    gaps = [abs(at_best[name] - value) for name, value in schema.best().items() if name in at_best]
    return round(float(np.mean(gaps)), 4) if at_best else float("nan")
