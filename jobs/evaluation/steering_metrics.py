"""The metrics of the report's answers: curves with bands, cross-talk, combined requests, dialogues, judge, length.

Each part takes measured answers and returns plain numbers; without answers of its kind it is empty. Knows no Ray,
file or plot.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation
from data.diversity import words
from data.measures import errors, mean_bands, partial_spearman, slope, spearman, spearman_ceiling, spearman_interval
from data.movement import movement
from data.prompts import COMBINED, DIALOGUE
from data.stage_metrics import Means
from data.steering_metrics import (
    CombinedSetting,
    CrossTalk,
    DialogueCurve,
    JudgeMetrics,
    LengthMetrics,
    SteeringCurve,
    TrustEverywhere,
)
from jobs.evaluation.ask import MeasuredAnswers, tabulate
from jobs.evaluation.predictor_quality import plain

TRUSTED = 0.9
"""From this Spearman on a predictor ranks answers nearly as the truth does."""
Pairs = Sequence[tuple[Conversation, Values]]


def curves(
    schema: AttributeSchema,
    answers: MeasuredAnswers,
    num_resamples: int,
    seed: int,
    deviations: Mapping[str, float] | None = None,
) -> tuple[dict[str, SteeringCurve], Means]:
    """`tabulate`, with the band of each mean (`low`, `high`) in the table, and the movement from end to end.

    `deviations`: of each attribute's labels (`label_deviations`).
    """
    table, best = tabulate(schema, answers)
    for name, row in table.items():
        varied = _of_group(answers, name)
        requested = [r.requested[-1][name] for r, _ in varied]
        names = [_question(r) for r, _ in varied]
        how = names, num_resamples, seed
        low, high = mean_bands(requested, _column(varied, name), *how)
        least, most = plain(spearman_interval(requested, _column(varied, name), *how))
        found = {"low": tuple(plain(low)), "high": tuple(plain(high)), "spearman_low": least, "spearman_high": most}
        found["movement"] = movement(
            requested, _column(varied, name), names, (deviations or {}).get(name), num_resamples, seed
        )
        table[name] = row.model_copy(update=found)
    return table, best


def cross_talk(schema: AttributeSchema, answers: MeasuredAnswers) -> CrossTalk:
    """Slopes of all attributes, a line for each attribute that was varied alone."""
    varied = {name: pairs for name in schema.names if (pairs := _of_group(answers, name))}
    slopes = [
        [slope([r.requested[-1][own] for r, _ in pairs], _column(pairs, name)) for name in schema.names]
        for own, pairs in varied.items()
    ]
    return CrossTalk(attributes=tuple(varied), measured=schema.names, slope=plain(slopes))


def combined(schema: AttributeSchema, answers: MeasuredAnswers) -> list[CombinedSetting]:
    """Each combined request: requested values, measured means, and the mean absolute gap over single answers."""
    by_setting: dict[tuple[tuple[str, float], ...], list[tuple[Conversation, Values]]] = defaultdict(list)
    for row, values in _of_group(answers, COMBINED):
        by_setting[tuple((name, row.requested[-1][name]) for name in schema.names if name in row.requested[-1])].append(
            (row, values)
        )
    found = []
    for setting, pairs in sorted(by_setting.items()):
        distances = [abs(values[name] - value) for _, values in pairs for name, value in setting if name in values]
        gap, measured = plain(_mean(distances)), plain(_means(schema, pairs))
        found.append(CombinedSetting(requested=dict(setting), measured=measured, mean_absolute_gap=gap, n=len(pairs)))
    return found


def dialogue(schema: AttributeSchema, answers: MeasuredAnswers) -> dict[str, DialogueCurve]:
    """Each attribute changed in mid-conversation, from low to high and from high to low: the second answer's mean."""
    found = {}
    for attribute in schema.attributes:
        name = attribute.name
        pairs = _of_group(answers, f"{DIALOGUE}{name}")
        if pairs:
            second = attribute.high, attribute.low
            means = [
                _mean([v[name] for row, v in pairs if row.requested[-1][name] == value and name in v])
                for value in second
            ]
            found[name] = DialogueCurve(first=second[::-1], second=second, measured_second=plain(means), n=len(pairs))
    return found


def judge(schema: AttributeSchema, answers: MeasuredAnswers) -> dict[str, JudgeMetrics]:
    """The predictor against the measured truth: per attribute over the answers that varied it, and `everywhere`.

    Among the other answers nearly all have the same true value, and those have no right order. So over all answers
    even a perfect judge's Spearman ends at the `ceiling`, far below 1.
    """
    found = {}
    for name in schema.names:
        groups = (name, COMBINED, f"{DIALOGUE}{name}")
        varied = [(row, values) for row, values in answers.measured if row.group in groups]
        ceiling = plain(spearman_ceiling(_column(answers.measured, name)))
        everywhere = TrustEverywhere(**_trust(answers.measured, name), ceiling=ceiling)
        found[name] = JudgeMetrics(**_trust(varied, name), everywhere=everywhere)
    return found


def _trust(pairs: Pairs, name: str) -> dict[str, Any]:
    truth, predicted = _column(pairs, name), [row.predicted[-1].get(name, math.nan) for row, _ in pairs]
    metrics = errors(truth, predicted)
    found = {key: metrics.get(key) for key in ("n", "spearman", "mae")}
    trust: dict[str, Any] = plain(found | {"slope": slope(truth, predicted)})
    return trust


def judge_note(metrics: Mapping[str, JudgeMetrics]) -> str:
    """A sentence with the attributes on which the predictor is not to be trusted."""
    found = {name: row.spearman for name, row in metrics.items() if row.spearman is None or row.spearman < TRUSTED}
    if not found:
        return (
            f"The predictor ranks answers as the truth does, with a Spearman of {TRUSTED} or more, on every attribute."
        )
    listed = ", ".join(f"{name} ({'unknown' if v is None else f'{v:.3f}'})" for name, v in found.items())
    return f"Under a Spearman of {TRUSTED} with the truth, so that its values are not to be trusted: {listed}."


def length(schema: AttributeSchema, answers: MeasuredAnswers) -> dict[str, LengthMetrics]:
    """Spearman of an answer's number of words with each attribute: over all answers, and within equal requests."""
    num_words = [len(words(row.messages[-1].content)) for row, _ in answers.measured]
    requests = [f"{row.group} {sorted(row.requested[-1].items())}" for row, _ in answers.measured]
    columns = {name: _column(answers.measured, name) for name in schema.names}
    return {
        name: LengthMetrics(
            spearman_words=plain(spearman(num_words, values)),
            partial_spearman=plain(partial_spearman(num_words, values, requests)),
        )
        for name, values in columns.items()
    }


def _of_group(answers: MeasuredAnswers, group: str) -> Pairs:
    return [(row, values) for row, values in answers.measured if row.group == group]


def _column(pairs: Pairs, name: str) -> list[float]:
    return [values.get(name, math.nan) for _, values in pairs]


def _question(row: Conversation) -> str:
    return repr(row.messages[:-1])


def _means(schema: AttributeSchema, pairs: Pairs) -> dict[str, float]:
    columns = {name: [values[name] for _, values in pairs if name in values] for name in schema.names}
    return {name: _mean(column) for name, column in columns.items() if column}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
