"""What the answers of the report come to, part by part: curves with bands, cross-talk, several dials, dialogues, the judge, the length.

Every part takes answers that are already measured and gives plain figures; where nothing was asked for it, it is empty. Knows no Ray, no file and no plot.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation
from data.diversity import words
from data.measures import errors, mean_bands, partial_spearman, slope, spearman, spearman_ceiling
from data.prompts import COMBINED, DIALOGUE
from jobs.evaluation.ask import Answers, tabulate
from jobs.runner.stage import Metrics

TRUSTED = 0.9
"""Spearman with the truth from which on a predictor ranks answers nearly as the truth does; the judge's note names what is under it."""
Pairs = Sequence[tuple[Conversation, Values]]


def curves(schema: AttributeSchema, answers: Answers, num_resamples: int, seed: int) -> tuple[Metrics, Metrics]:
    """`tabulate`, with the band of each mean (`low`, `high`) in the table."""
    table, best = tabulate(schema, answers)
    for name, row in table.items():
        turned = _of_group(answers, name)
        asked, got = [r.requested[-1][name] for r, _ in turned], _column(turned, name)
        low, high = mean_bands(asked, got, [_question(r) for r, _ in turned], num_resamples, seed)
        table[name] = {"requested": row["requested"], "measured": row["measured"], "low": low, "high": high, **row}
    return table, best


def cross_talk(schema: AttributeSchema, answers: Answers) -> Metrics:
    """Turn one dial, what moves? Slopes of all attributes, a row for each dial that was turned alone."""
    turned = {name: pairs for name in schema.names if (pairs := _of_group(answers, name))}
    slopes = [
        [slope([r.requested[-1][dial] for r, _ in pairs], _column(pairs, name)) for name in schema.names]
        for dial, pairs in turned.items()
    ]
    return {"attributes": list(turned), "measured": list(schema.names), "slope": slopes}


def combined(schema: AttributeSchema, answers: Answers) -> list[Metrics]:
    """Each setting of several dials: what was asked, the means that were got, and the mean distance of an answer's attribute from what was asked."""
    by_setting: dict[tuple[tuple[str, float], ...], list[tuple[Conversation, Values]]] = defaultdict(list)
    for row, values in _of_group(answers, COMBINED):
        by_setting[tuple((name, row.requested[-1][name]) for name in schema.names if name in row.requested[-1])].append(
            (row, values)
        )
    found = []
    for setting, pairs in sorted(by_setting.items()):
        distances = [abs(values[name] - asked) for _, values in pairs for name, asked in setting if name in values]
        found.append(
            {
                "requested": dict(setting),
                "measured": _means(schema, pairs),
                "mean_absolute_gap": _mean(distances),
                "n": len(pairs),
            }
        )
    return found


def dialogue(schema: AttributeSchema, answers: Answers) -> Metrics:
    """Each dial changed in mid-conversation, from low to high and from high to low: what the second answer has of it."""
    found = {}
    for dial in schema.attributes:
        pairs = _of_group(answers, f"{DIALOGUE}{dial.name}")
        if pairs:
            second = [dial.high, dial.low]
            means = [
                _mean(
                    [
                        values[dial.name]
                        for row, values in pairs
                        if row.requested[-1][dial.name] == asked and dial.name in values
                    ]
                )
                for asked in second
            ]
            found[dial.name] = {"first": second[::-1], "second": second, "measured_second": means, "n": len(pairs)}
    return found


def judge(schema: AttributeSchema, answers: Answers) -> Metrics:
    """The predictor against the measure of `answers`, which is the truth: per attribute over the answers whose dial was turned, and `everywhere`.

    Where a dial is not turned, nearly all answers have the same true value. No judge can put those in the right order, for there is none, so over
    all answers even a perfect one's Spearman ends at the `ceiling`, far below 1.
    """
    found = {}
    for name in schema.names:
        turned = [
            (row, values) for row, values in answers.measured if row.group in (name, COMBINED, f"{DIALOGUE}{name}")
        ]
        everywhere = _trust(answers.measured, name) | {"ceiling": spearman_ceiling(_column(answers.measured, name))}
        found[name] = _trust(turned, name) | {"everywhere": everywhere}
    return found


def _trust(pairs: Pairs, name: str) -> Metrics:
    truth, predicted = _column(pairs, name), [row.predicted[-1].get(name, math.nan) for row, _ in pairs]
    metrics = errors(truth, predicted)
    return {key: metrics.get(key, math.nan) for key in ("n", "spearman", "mae")} | {"slope": slope(truth, predicted)}


def judge_note(metrics: Metrics) -> str:
    """A sentence that says of which attributes the predictor is to be doubted."""
    doubted = {
        name: row["spearman"] for name, row in metrics.items() if not row["spearman"] >= TRUSTED
    }  # NaN is no reason to trust
    if not doubted:
        return (
            f"The predictor ranks answers as the truth does, with a Spearman of {TRUSTED} or more, on every attribute."
        )
    listed = ", ".join(
        f"{name} ({'unknown' if math.isnan(value) else f'{value:.3f}'})" for name, value in doubted.items()
    )
    return f"Under a Spearman of {TRUSTED} with the truth, so that what the predictor says of them is to be doubted: {listed}."


def length(schema: AttributeSchema, answers: Answers) -> Metrics:
    """Does an attribute go with the answer's length? Spearman with its words over all answers, and among answers to the very same request."""
    num_words = [len(words(row.messages[-1].content)) for row, _ in answers.measured]
    asked = [f"{row.group} {sorted(row.requested[-1].items())}" for row, _ in answers.measured]
    columns = {name: _column(answers.measured, name) for name in schema.names}
    return {
        name: {
            "spearman_words": spearman(num_words, values),
            "partial_spearman": partial_spearman(num_words, values, asked),
        }
        for name, values in columns.items()
    }


def _of_group(answers: Answers, group: str) -> Pairs:
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
