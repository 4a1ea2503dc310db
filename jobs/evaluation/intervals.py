"""95 % intervals of a policy's metrics over other questions, for comparisons of policies that were trained once.

A percentile bootstrap over whole questions, as for the report's bands; it knows nothing of other seeds of training.
"""

import numpy as np

from data.measures import BAND_95, mean_bands, resampled_spearman
from data.prompts import BEST
from jobs.evaluation.ask import MeasuredAnswers
from jobs.evaluation.predictor_quality import plain
from jobs.runner.stage import Run

Interval = tuple[float | None, float | None]


def intervals(run: Run, answers: MeasuredAnswers) -> dict[str, Interval]:
    """Of the leading attribute at best (`quality`), of each attribute's Spearman, and of their mean (`mean_spearman`).

    What has no value has no interval.
    """
    settings, lead = run.preset.evaluate, run.preset.bootstrap.leading
    how = settings.num_resamples, run.preset.seed
    found: dict[str, Interval] = {}
    best = [
        (repr(row.messages[:-1]), values[lead])
        for row, values in answers.measured
        if row.group == BEST and lead in values
    ]
    if best:
        names, measured = [question for question, _ in best], [value for _, value in best]
        low, high = mean_bands([0.0] * len(best), measured, names, *how)
        found["quality"] = plain(low[0]), plain(high[0])
    drawn = {}
    for name in run.schema.names:
        varied = [(row, values[name]) for row, values in answers.measured if row.group == name and name in values]
        if varied:
            requested = [row.requested[-1][name] for row, _ in varied]
            asked = [repr(row.messages[:-1]) for row, _ in varied]
            drawn[name] = resampled_spearman(requested, [value for _, value in varied], asked, *how)
            found[name] = _ends(drawn[name])
    if drawn:
        # An attribute that does not move at all counts as 0, as in the mean itself.
        columns = [np.nan_to_num(r_R) if len(r_R) else np.zeros(settings.num_resamples) for r_R in drawn.values()]
        found["mean_spearman"] = _ends(np.mean(columns, axis=0))
    return {name: ends for name, ends in found.items() if None not in ends}


def _ends(drawn_R: np.ndarray) -> Interval:
    known_R = drawn_R[np.isfinite(drawn_R)]
    if not len(known_R):
        return None, None
    low, high = np.percentile(known_R, BAND_95)
    return round(float(low), 4), round(float(high), 4)
