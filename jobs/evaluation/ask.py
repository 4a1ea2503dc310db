"""Does the dial turn? Questions asked at every setting, the answers measured, and the table they come to. Shared by report, promotion and ablation.

In the laboratory answers are measured exactly, from their text; on real rows by the predictor, and `measured_by` says which.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, Message, from_table
from data.examples import bucket
from data.lab import Lab
from data.measures import mean_absolute_gap, steering
from data.prompts import BEST, Prompt, prompts_table
from data.storage import Storage
from jobs.pipelines.annotation import annotate
from jobs.pipelines.fit import buckets_for
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample
from jobs.runner.preset import LAB
from jobs.runner.stage import Metrics, Run

Measure = Callable[[Conversation], Values]


@dataclass(frozen=True)
class Answers:
    """What a policy said, in the order of the rows' ids, and how it is measured."""

    rows: list[Conversation]
    measured_by: str
    measure: Measure

    @cached_property
    def measured(self) -> list[tuple[Conversation, Values]]:
        """Each row with the values of its last answer."""
        return [(row, self.measure(row)) for row in self.rows]


def ask(
    run: Run, what: str, policy: Storage, prompts: Sequence[Prompt], folder: Storage, rate: bool = False
) -> Answers:
    """Ask `policy` all `prompts` at the temperature of the evaluation; all lies in `folder`. `rate`: the predictor reads the answers in any case."""
    rows = answered(run, what, policy, prompts, folder)
    if rate or not synthetic_world(run):
        rows = rated(run, what, [folder / "answers"], folder / "rated")
    return measurable(run, rows)


def answered(run: Run, what: str, policy: Storage, prompts: Sequence[Prompt], folder: Storage) -> list[Conversation]:
    """What `policy` says to all `prompts`, unrated; both lie in `folder`."""
    write_table(prompts_table(prompts), folder / "prompts")
    sample(run, f"{what}: sample", policy, folder / "prompts", folder / "answers", run.preset.evaluate.temperature)
    return _rows(folder / "answers")


def rated(run: Run, what: str, answers: list[Storage], target: Storage) -> list[Conversation]:
    """All `answers` with what the predictor says of them, into `target`."""
    annotate(run, f"{what}: rate", answers, target)
    return _rows(target)


def _rows(folder: Storage) -> list[Conversation]:
    return sorted((row for table in folder.tables() for row in from_table(table)), key=lambda row: row.id)


def measurable(run: Run, rows: list[Conversation]) -> Answers:
    """The rows with the best measure there is: the laboratory's, or else the predictor's, which must have rated them."""
    if lab := synthetic_world(run):
        return Answers(rows, "exactly, from the text", lambda row: lab.measure(row.messages))
    return Answers(rows, "by the predictor", lambda row: row.predicted[-1])


def synthetic_world(run: Run) -> Lab | None:
    """The world that the run's rows come from, if its truth is known."""
    return Lab(run.preset.rows.lab) if any(s.format == LAB for s in run.preset.rows.sources) else None


def questions(run: Run, wanted: int, for_promotion: bool = False) -> list[list[Message]]:
    """What is asked: the laboratory's questions, or first questions of groups that the policy did not train on where there are enough.

    Those that judge a round are others than the report's, where there are enough.
    """
    if lab := synthetic_world(run):
        return [[Message("user", q)] for q in lab.questions(wanted, run.preset.seed + for_promotion)]
    buckets = buckets_for(run.preset.policy.validation_share)
    found: dict[str, tuple[bool, str]] = {}
    for table in (run.folder("rows") / "rows").tables():
        for row in from_table(table):
            found[row.messages[0].content] = (not (buckets and bucket(row.group, buckets) == 0), row.group)
    ordered = sorted(found, key=lambda q: (found[q][1], q), reverse=for_promotion)
    ordered.sort(key=lambda q: found[q][0])
    return [[Message("user", q)] for q in ordered[:wanted]]


def tabulate(schema: AttributeSchema, answers: Answers) -> tuple[Metrics, Metrics]:
    """The steering table, one entry per attribute that was turned, and the mean of every attribute at best settings."""
    turned: dict[str, list[tuple[float, Values]]] = defaultdict(list)
    best: dict[str, list[float]] = defaultdict(list)
    for row, values in answers.measured:
        if row.group == BEST:
            for name, value in values.items():
                best[name].append(value)
        elif row.group in schema.names:
            turned[row.group].append((row.requested[-1][row.group], values))
    table = {name: _dial(name, *zip(*turned[name], strict=True)) for name in schema.names if name in turned}
    return table, {name: round(float(np.mean(values)), 4) for name, values in best.items()}


def _dial(name: str, asked: Sequence[float], values: Sequence[Values]) -> Metrics:
    """One dial: what it did to its own attribute, and to the others."""
    own = [v.get(name, np.nan) for v in values]
    others = {other for v in values for other in v if other != name}
    drift = [mean_absolute_gap(asked, [v.get(other, np.nan) for v in values]) for other in sorted(others)]
    return steering(asked, own) | {"mean_absolute_gap": round(float(np.mean(drift)), 4) if drift else 0.0}


def mean_spearman(table: Metrics) -> float:
    """Over all dials that were turned; one that does not move its attribute at all counts as 0."""
    values = [0.0 if np.isnan(row["spearman"]) else row["spearman"] for row in table.values()]
    return round(float(np.mean(values)), 4) if values else 0.0


def gap_at_best(schema: AttributeSchema, at_best: Values) -> float:
    """How far the means at best settings are from what was asked, mean over attributes, in points of the scale."""
    return (
        round(
            float(np.mean([abs(at_best[name] - value) for name, value in schema.best().items() if name in at_best])), 4
        )
        if at_best
        else float("nan")
    )
