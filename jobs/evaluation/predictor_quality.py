"""The quality of a predictor: its errors on answers it never saw, beside those of baselines. Numbers in, numbers out.

Knows no Ray, no file and no text (`data.ratings` extracts the numbers from the rows).
"""

import math
from typing import Any

import numpy as np

from data.attributes import AttributeSchema
from data.calibration import Calibration, matched_to_people
from data.measures import collinearity, errors, reliability, spearman
from data.quality_metrics import AttributeQuality, Collinearity, PredictorQuality
from data.ratings import Ratings


def quality(schema: AttributeSchema, rated: Ratings, held_out: Ratings) -> PredictorQuality:
    """All metrics of a predictor, from stored scores; NaN is None.

    `rated` holds every rated answer (only their human values count), `held_out` those scored by a predictor that did
    not train on them. `attributes`: per attribute the errors of the raw scores; under `calibrated` those of the scores
    that become labels, where these differ; and the baselines, over the same answers. `calibration` is fitted on the
    answers that it is evaluated on: two numbers from all of them, so its errors are slightly too small where answers
    are few.
    """
    calibration = matched_to_people(held_out.human_NA, held_out.predicted_NA, schema.names)
    means_NA = rated.training_means_NA(held_out)
    attributes = {
        name: _attribute(name, held_out, column, means_NA[:, column], calibration)
        for column, name in enumerate(schema.names)
    }
    r_AA, n_AA = collinearity(rated.human_NA)
    unscored = int(np.isnan(held_out.predicted_NA).all(axis=1).sum())
    return PredictorQuality(
        answers={"rated": len(rated), "held_out": len(held_out), "unscored": unscored},
        attributes=attributes,
        calibration=calibration,
        collinearity=Collinearity(names=schema.names, spearman=plain(r_AA.tolist()), n=n_AA.tolist()),
    )


def _attribute(
    name: str, held_out: Ratings, column: int, mean_N: np.ndarray, calibration: Calibration
) -> AttributeQuality:
    """The metrics of one attribute; baselines count the answers that the predictor scored."""
    human_N, predicted_N, truth_N = (
        values_NA[:, column].astype(float)
        for values_NA in (held_out.human_NA, held_out.predicted_NA, held_out.truth_NA)
    )
    human_N[np.isnan(predicted_N)] = np.nan
    mean, own, length = errors(human_N, mean_N), errors(human_N, predicted_N), spearman(human_N, held_out.length_N)
    metrics: dict[str, Any] = own | {
        "std_human": _std(human_N),
        "std_predicted": _std(predicted_N[~np.isnan(human_N)]),
        "reliability": reliability(predicted_N, human_N),
        "baselines": {
            "mean": {key: mean[key] for key in ("n", "mae", "rmse") if key in mean},
            "length": {"spearman": length, "lead": own.get("spearman", math.nan) - length},
        },
    }
    if calibration.changes(name):
        stretched_N = calibration.of(name, predicted_N)
        metrics["calibrated"] = errors(human_N, stretched_N) | {"std_predicted": _std(stretched_N[~np.isnan(human_N)])}
        metrics["calibrated"]["reliability"] = reliability(stretched_N, human_N)
    if not np.isnan(truth_N).all():
        truth_N[np.isnan(human_N)] = np.nan
        metrics["truth"] = {"predictor": errors(truth_N, predicted_N), "one_rater": errors(truth_N, human_N)}
    return AttributeQuality(**plain(metrics))


def _std(values_N: np.ndarray) -> float:
    values_N = values_N[~np.isnan(values_N)]
    return float(values_N.std()) if len(values_N) else math.nan


def plain(value: Any) -> Any:
    """Floats to 4 digits, and None for NaN, which JSON does not know."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
