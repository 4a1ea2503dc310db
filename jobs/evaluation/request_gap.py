"""How far answers are from what was requested, over all settings: one number for a policy, with its interval."""

import math

import numpy as np

from data.attributes import AttributeSchema
from data.measures import mean_bands
from data.prompts import COMBINED
from jobs.evaluation.ask import MeasuredAnswers
from jobs.evaluation.intervals import Interval
from jobs.evaluation.predictor_quality import plain
from jobs.runner.stage import Run


def request_gap(run: Run, answers: MeasuredAnswers) -> tuple[float | None, Interval]:
    """Mean of |requested - measured|, in points of the scale, and its 95 % interval over questions.

    Over the answers whose setting varies one attribute or all at once, and in each over the requested attributes.
    """
    gaps = _gaps(run.schema, answers)
    if not gaps:
        return None, (None, None)
    names, values = [name for name, _ in gaps], [value for _, value in gaps]
    low, high = mean_bands([0.0] * len(gaps), values, names, run.preset.evaluate.num_resamples, run.preset.seed)
    return round(float(np.mean(values)), 4), (plain(low[0]), plain(high[0]))


def _gaps(schema: AttributeSchema, answers: MeasuredAnswers) -> list[tuple[str, float]]:
    """The question and the mean distance of each answer that was measured."""
    found = []
    for row, values in answers.measured:
        if row.group not in (*schema.names, COMBINED):
            continue
        distances = [
            abs(wanted - values[name])
            for name, wanted in row.requested[-1].items()
            if not math.isnan(values.get(name, math.nan))
        ]
        if distances:
            found.append((repr(row.messages[:-1]), float(np.mean(distances))))
    return found
