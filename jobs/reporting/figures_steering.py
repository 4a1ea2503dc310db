"""Figures about steering: each attribute's curve, cross-talk, the predictor beside the truth, and the bootstrap rounds.

Draws the records of `data.steering_metrics`; computes none of its own but what marks show.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data.attributes import Attribute, AttributeSchema
from data.steering_metrics import CrossTalk, JudgeMetrics, ReportMetrics, RoundMeasures
from data.storage import Storage
from jobs.evaluation.ask import MeasuredAnswers
from jobs.reporting.blocks import finite
from jobs.reporting.figures import (
    FIRST,
    MARKS,
    SECOND,
    SOFT,
    Plot,
    diagonal,
    few_ticks,
    heat_map,
    legend_above,
    number,
    or_nan,
    save_png,
    titled,
    whole_ticks,
)
from jobs.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPREAD = (5, 95)
"""Percentiles of the predicted values between which a mark's line lies."""


class Curve(Protocol):
    """What is drawn of one: a `SteeringCurve`, or what production shows of an attribute."""

    @property
    def requested(self) -> Sequence[float]: ...
    @property
    def measured(self) -> Sequence[float | None]: ...
    @property
    def low(self) -> Sequence[float | None]: ...
    @property
    def high(self) -> Sequence[float | None]: ...
    @property
    def spearman(self) -> float | None: ...
    @property
    def slope(self) -> float | None: ...
    @property
    def monotonic(self) -> bool: ...


def steering(attribute: Attribute, curve: Curve) -> Plot:
    """Requested against measured, with the 95 % band of the means."""
    requested, measured = curve.requested, [or_nan(v) for v in curve.measured]
    pairs = ", ".join(f"{r:g} gives {shown(m)}" for r, m in zip(requested, measured, strict=True))

    def draw(axes: "Axes") -> None:
        diagonal(axes, attribute, "equal")
        if curve.low and curve.high:
            low, high = ([or_nan(v) for v in ends] for ends in (curve.low, curve.high))
            axes.fill_between(requested, low, high, color=FIRST, alpha=0.25, linewidth=0, label="95 % band")
        axes.plot(requested, measured, color=FIRST, label="measured", **MARKS)
        axes.set(xlabel="requested", ylabel="measured (mean)", xticks=requested)
        margin, (bottom, top) = 0.04 * (attribute.high - attribute.low), axes.get_ylim()
        axes.set_ylim(min(attribute.low - margin, bottom), max(attribute.high + margin, top))
        falls = "" if curve.monotonic else ", not monotonic"
        titled(axes, attribute.name, f"Spearman {number(curve.spearman)}, slope {number(curve.slope)}{falls}")
        whole_ticks(axes.yaxis)
        legend_above(axes, 3)

    return Plot(f"steering-{attribute.name}", f"{attribute.name}: measured against requested; {pairs}.", draw)


def draw_steering(title: str, schema: AttributeSchema, report: ReportMetrics, target: Storage) -> None:
    """A PNG with the `steering` of each attribute that was varied."""
    plots = [steering(a, report.steering[a.name]) for a in schema.attributes if a.name in report.steering]
    save_png(plots, target, f"{title}: requested and measured values, measured {report.measured_by}")


def draw_cross_talk(found: CrossTalk, target: Storage) -> None:
    """A PNG with the matrix of slopes: the attribute that is requested to the left, the measured ones below."""
    texts = [[shown(slope) for slope in line] for line in found.slope]
    title, scale = "Cross-talk", "points per point requested"
    axes = "measured", "requested"
    plot = heat_map("cross-talk", title, found.attributes, found.measured, found.slope, texts, scale, axes)
    save_png([plot], target)


def _truth(attribute: Attribute, answers: MeasuredAnswers, judge: JudgeMetrics) -> Plot:
    """The predicted values of answers that truly have a value, over all `answers`."""
    name = attribute.name
    pairs = [
        (values[name], row.predicted[-1].get(name, math.nan)) for row, values in answers.measured if name in values
    ]
    truth_N, predicted_N = np.array([p for p in pairs if not math.isnan(p[1])], float).reshape(-1, 2).T

    def draw(axes: "Axes") -> None:
        diagonal(axes, attribute, "equal")
        scores = [(value, predicted_N[truth_N == value]) for value in np.unique(truth_N)]
        for value, found in scores:
            low, high = np.percentile(found, SPREAD)
            axes.plot([value, value], [low, high], color=SECOND, linewidth=2, solid_capstyle="round")
            offset: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(f"{len(found):,}", (value, high), ha="center", color=SOFT, **offset)
        means = [found.mean() for _, found in scores]
        axes.plot([value for value, _ in scores], means, color=FIRST, label="mean", **MARKS | {"linewidth": 0})
        axes.plot([], [], color=SECOND, linewidth=2, label=f"{SPREAD[0]} to {SPREAD[1]} %")
        axes.margins(x=0.08)
        axes.set(xlabel="true value", ylabel="predicted value", xticks=range(attribute.low, attribute.high + 1))
        titled(axes, name, f"Spearman {number(judge.spearman)}, slope {number(judge.slope)}")
        whole_ticks(axes.yaxis)
        legend_above(axes, 3)

    return Plot(f"judge-{name}", f"{name}: predicted against true values.", draw)


def draw_judge(
    schema: AttributeSchema, answers: MeasuredAnswers, judge: Mapping[str, JudgeMetrics], target: Storage
) -> None:
    """A PNG with the predicted against the true values of each attribute, over all `answers`."""
    title = "Predicted and exact values of all answers; Spearman and slope where the attribute was varied"
    save_png([_truth(a, answers, judge[a.name]) for a in schema.attributes], target, title)


def rounds(schema: AttributeSchema, found: Sequence[RoundMeasures]) -> list[Plot]:
    """Round by round: steering, variety, length, each attribute's predicted and true mean; without a round, nothing."""
    if not found:
        return []
    drifts = [r.drift for r in found]
    numbers = [r.round for r in found]
    metrics = (
        ("rounds-steering", "mean Spearman", [r.mean_spearman for r in found], (0, 1)),
        ("rounds-distinct", "distinct-2: variety", [d.distinct_2 for d in drifts], (0, 0.01)),
        ("rounds-words", "words in an answer", [d.words for d in drifts], (0, 10)),
    )
    plots = [_by_round(name, title, numbers, {"": values}, scale) for name, title, values, scale in metrics]
    for a in schema.attributes:
        means = {"predicted": [d.predicted for d in drifts], "true": [d.true for d in drifts]}
        series: dict[str, list[float | None]] = {k: [m.get(a.name) for m in values] for k, values in means.items()}
        series = {kind: values for kind, values in series.items() if any(v is not None for v in values)}
        if series:
            plots.append(_by_round(f"rounds-{a.name}", f"{a.name}: mean", numbers, series, (a.low, a.high)))
    return plots


def _by_round(
    name: str,
    title: str,
    numbers: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    scale: tuple[float, float],
) -> Plot:
    """One or two series over the rounds; round 0 is the policy before the first. The axis shows all of `scale`."""
    values = {label: [finite(v) for v in found] for label, found in series.items()}
    listed = "; ".join(f"{label} {', '.join(shown(v, 3) for v in found)}".lstrip() for label, found in values.items())

    def draw(axes: "Axes") -> None:
        for (label, found), color, line in zip(values.items(), (FIRST, SECOND), ("-", "--"), strict=False):
            axes.plot(numbers, [or_nan(v) for v in found], color=color, linestyle=line, label=label, **MARKS)
        axes.set(title=title, xlabel="round", xticks=numbers)
        known = [v for found in values.values() for v in found if v is not None]
        low, high = min([scale[0], *known]), max([scale[1], *known])
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        few_ticks(axes.yaxis, steps=[1, 2, 5, 10])
        if any(values):
            legend_above(axes, 2)

    return Plot(name, f"{title}, round by round from {numbers[0]}; {listed}.", draw)


def draw_rounds(title: str, schema: AttributeSchema, found: Sequence[RoundMeasures], target: Storage) -> None:
    """A PNG with all plots of `rounds`; without a round, no file."""
    kept = ", ".join(f"{r.round} {'' if r.promoted else 'not '}promoted" for r in found[1:])
    save_png(rounds(schema, found), target, f"{title}: bootstrap rounds ({kept})")
