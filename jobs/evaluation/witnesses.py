"""Outside witnesses of steering: what measures by other makers find in the answers that a report is about.

A policy may learn to please the predictor that rated its training rows. A witness has rated none of them, or, if it did
(`annotate.raters`), says so. Knows no page.
"""

from collections.abc import Callable, Sequence

import numpy as np

from actors.scoring import hatesonar
from data.attributes import AttributeSchema
from data.conversation import Conversation
from data.measures import mean_bands, spearman_interval, steering
from data.movement import movement
from data.steering_metrics import WitnessCurve, WitnessMetrics
from data.text_measures import MEASURES
from jobs.evaluation.ask import MeasuredAnswers, synthetic_world
from jobs.evaluation.deviations import text_deviation
from jobs.evaluation.predictor_quality import plain
from jobs.runner.evaluation_settings import WitnessKind
from jobs.runner.stage import Run
from jobs.runner.start_models import base_uri

BY_DEFAULT: tuple[WitnessKind, ...] = ("words", "flesch_kincaid", "type_token_ratio", "hatesonar")
STANDS_FOR: dict[WitnessKind, str] = {
    "words": "verbosity",
    "tokens": "verbosity",
    "characters": "verbosity",
    "sentences": "verbosity",
    "flesch_kincaid": "complexity",
    "type_token_ratio": "creativity",
    "hatesonar": "toxicity",
}
"""Witness -> attribute that it should move with, where a run has it."""


def witnesses(run: Run, answers: MeasuredAnswers) -> tuple[dict[str, WitnessMetrics], dict[str, str]]:
    """What each witness of `evaluate.witnesses` measured, and which was absent, with the reason.

    Raises UserError for an absent one that the preset asks for by name.
    """
    asked = run.preset.evaluate.witnesses
    kinds = asked if asked is not None else () if synthetic_world(run) else BY_DEFAULT
    absent = {"hatesonar": reason} if "hatesonar" in kinds and (reason := hatesonar.missing()) else {}
    kinds = tuple(kind for kind in kinds if asked is not None or kind not in absent)
    return {kind: _heard(run, kind, answers.rows) for kind in kinds}, {} if asked is not None else absent


def _heard(run: Run, kind: WitnessKind, rows: Sequence[Conversation]) -> WitnessMetrics:
    measure, meaning, unit = _witness(run, kind)
    attribute = STANDS_FOR[kind] if STANDS_FOR[kind] in run.schema.names else None
    settings = run.preset.evaluate.num_resamples, run.preset.seed
    return WitnessMetrics(
        meaning=meaning,
        unit=unit,
        attribute=attribute,
        is_rater=attribute is not None and run.preset.roster.measures.get(attribute) == kind,
        curves=_curves(run.schema, rows, measure, text_deviation(run, measure), *settings),
    )


def _witness(run: Run, kind: WitnessKind) -> tuple[Callable[[list[str]], list[float]], str, str]:
    """What measures texts, what it means, and its unit."""
    if kind == "hatesonar":
        meaning = "Probability that a text is hate speech or offensive, by hatesonar, which was trained on tweets."
        return hatesonar.Hatesonar(), meaning, "probability"
    if kind == "tokens":
        from actors.modeling.model_folder import token_counter  # with torch

        return token_counter(base_uri(run)), "Number of tokens, as the base model's tokenizer cuts them.", "tokens"
    measure = MEASURES[kind]
    return lambda texts: [measure.of(text) for text in texts], measure.meaning, measure.unit


def _curves(
    schema: AttributeSchema,
    rows: Sequence[Conversation],
    measure: Callable[[list[str]], list[float]],
    deviation: float | None,
    num_resamples: int,
    seed: int,
) -> dict[str, WitnessCurve]:
    """Attribute that was varied alone -> its curve."""
    found = {}
    for name in schema.names:
        varied = [row for row in rows if row.group == name]
        if not varied:
            continue
        measured = measure([row.messages[-1].content for row in varied])
        requested = [row.requested[-1][name] for row in varied]
        how = [repr(row.messages[:-1]) for row in varied], num_resamples, seed
        low, high = mean_bands(requested, measured, *how)
        least, most = spearman_interval(requested, measured, *how)
        dose = steering(requested, np.array(measured))
        curve = {name: dose[name] for name in ("requested", "measured", "n", "spearman")}
        curve |= {"low": low, "high": high, "spearman_low": least, "spearman_high": most}
        found[name] = WitnessCurve(**plain(curve), movement=movement(requested, measured, how[0], deviation, *how[1:]))
    return found
