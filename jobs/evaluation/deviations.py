"""How much the answers differ that a policy learned from: standard deviations of their labels and of their texts.

A movement of the measured values is large or small beside these.
"""

from collections.abc import Callable

import numpy as np

from data.calibration import Calibration
from data.label_spread import answer_texts, answer_values
from jobs.evaluation.ask import synthetic_world
from jobs.pipelines.annotation import calibration
from jobs.runner.stage import Run

MAX_TEXTS = 2000
"""Texts that a witness measures: enough for two digits, and seconds for a classifier."""


def label_deviations(run: Run) -> dict[str, float]:
    """Attribute -> standard deviation of the labels among the annotated answers, on the scale that answers are measured
    on; none where no answer is annotated."""
    rows, policy = run.folder("annotated") / "rows", run.preset.policy
    if not rows.exists():
        return {}
    human = policy.labels == "human"
    spread = not human and (policy.spread_labels or synthetic_world(run) is not None)
    as_label = calibration(run) if spread else Calibration()
    values_NA = answer_values(rows, run.schema, "human" if human else "predicted")
    columns = {name: as_label.of(name, values_NA[:, i].astype(float)) for i, name in enumerate(run.schema.names)}
    return {name: float(np.nanstd(column)) for name, column in columns.items() if not np.isnan(column).all()}


def text_deviation(run: Run, measure: Callable[[list[str]], list[float]]) -> float | None:
    """The standard deviation of a measure of texts among the annotated answers; None where there are none."""
    rows = run.folder("annotated") / "rows"
    texts = answer_texts(rows, MAX_TEXTS) if rows.exists() else []
    values_N = np.array(measure(texts) if texts else [], float)
    return None if np.isnan(values_N).all() else float(np.nanstd(values_N))
