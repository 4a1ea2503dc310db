"""Figures about predictor and trainings: losses, labels before and after annotation, reliability, collinearity.

Draws the records of `data.quality_metrics` and of trainings; computes none of its own but the marks' intervals.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data.attributes import Attribute, AttributeSchema
from data.measures import NORMAL_95
from data.printable import printable
from data.quality_metrics import AttributeQuality, Collinearity, PredictorQuality, ReliabilityBin
from data.stage_metrics import LossPoint, TrainingMetrics
from data.storage import Storage
from jobs.reporting.figures import (
    FAINT,
    FIRST,
    MARKS,
    SECOND,
    Plot,
    diagonal,
    heat_map,
    legend_above,
    save_png,
    titled,
    whole_ticks,
)
from jobs.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_MARKS = 30
"""So many validations are drawn as a line without marks."""


def losses(name: str, title: str, training: TrainingMetrics) -> Plot:
    """The loss by step, the loss on held-out rows, and the step whose weights were saved."""
    title, trained, held_out = printable(title), training.losses, training.validations
    alt = f"{title}: no step was logged"
    if trained:
        alt = f"{title}: training loss from {shown(trained[0].loss, 3)} to {shown(trained[-1].loss, 3)}"
    if held_out:
        alt += f"; held out, at last {shown(held_out[-1].loss, 3)}"

    def draw(axes: "Axes") -> None:
        axes.plot(*_points(trained), color=FIRST, linewidth=1.6, label="trained on")
        if held_out:
            style = MARKS if len(held_out) < MANY_MARKS else {"linewidth": 1.6}
            axes.plot(*_points(held_out), color=SECOND, label="held out", **style)
            axes.axvline(training.saved_step, ymax=0.8, color=FAINT, linestyle=":", linewidth=1.5, label="saved")
        axes.set(title=title, xlabel="step", ylabel="mean loss over targets")
        whole_ticks(axes.xaxis)
        legend_above(axes, 3)

    return Plot(name, f"{alt}.", draw)


def _points(losses: Sequence[LossPoint]) -> tuple[list[int], list[float]]:
    return [point.step for point in losses], [point.loss for point in losses]


def draw_losses(trainings: Mapping[str, TrainingMetrics], target: Storage) -> None:
    """A PNG with the `losses` of each training, by name."""
    save_png([losses(name, name, training) for name, training in trainings.items()], target)


def histogram(attribute: Attribute, before: Sequence[int], after: Sequence[int]) -> Plot:
    """How often each value of the scale was given: by people before annotation, by the predictor after it."""
    values = list(range(attribute.low, attribute.high + 1))
    shares = [[100 * n / max(1, sum(counts)) for n in counts] for counts in (before, after)]
    pairs = ", ".join(f"{v}: {p:.0f} % and {q:.0f} %" for v, p, q in zip(values, *shares, strict=True))

    def draw(axes: "Axes") -> None:
        axes.bar([v - 0.2 for v in values], shares[0], width=0.38, color=FIRST, label=f"people ({sum(before):,})")
        axes.bar([v + 0.2 for v in values], shares[1], width=0.38, color=SECOND, label=f"predictor ({sum(after):,})")
        axes.set(title=attribute.name, xlabel="value", ylabel="% of rated answers", xticks=values)
        axes.set_ylim(0, max(1, *shares[0], *shares[1]))
        axes.grid(visible=False, axis="x")
        legend_above(axes, 2)

    alt = f"{attribute.name}: share of the answers at each value, people and predictor; {pairs}."
    return Plot(f"values-{attribute.name}", alt, draw)


def reliability(schema: AttributeSchema, found: Mapping[str, AttributeQuality]) -> list[Plot]:
    """Per attribute the mean human against the mean predicted value, by decile of prediction, raw and calibrated."""
    limits = _limits(schema, found)
    return [
        _reliability(attribute, found[attribute.name], limits)
        for attribute in schema.attributes
        if attribute.name in found
    ]


def _reliability(attribute: Attribute, row: AttributeQuality, limits: tuple[float, float]) -> Plot:
    marks = ", ".join(f"{shown(b.predicted)} is {shown(b.human)}" for b in row.reliability)

    def draw(axes: "Axes") -> None:
        diagonal(axes, attribute, "equal")
        # The raw series is drawn last: it lies on top where both agree.
        if row.calibrated and row.calibrated.reliability:
            _series(axes, row.calibrated.reliability, SECOND, "white", "calibrated")
        _series(axes, row.reliability, FIRST, FIRST, "raw")
        axes.set(xlim=limits, ylim=limits, xlabel="predicted value (mean)", ylabel="human value (mean)")
        spearman = "" if row.spearman is None else f", Spearman {row.spearman:.2f}"
        titled(axes, attribute.name, f"{row.n:,} answers{spearman}")
        whole_ticks(axes.xaxis, axes.yaxis)
        legend_above(axes, 3)

    alt = f"{attribute.name}: people's mean value against the predictor's, by decile; {marks}."
    return Plot(f"reliability-{attribute.name}", alt, draw)


def _limits(schema: AttributeSchema, found: Mapping[str, AttributeQuality]) -> tuple[float, float]:
    """One range for both axes of all panels. A score may lie off the scale, and the plot shows it."""
    series = [s.reliability for row in found.values() for s in (row, row.calibrated) if s]
    values = [b.predicted for bins in series for b in bins]
    low = min([*values, *(a.low for a in schema.attributes)])
    high = max([*values, *(a.high for a in schema.attributes)])
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _series(axes: "Axes", bins: Sequence[ReliabilityBin], color: str, fill: str, label: str) -> None:
    # An interval needs two answers; a lone one gets a mark without.
    half = [NORMAL_95 * (b.se or 0.0) for b in bins]
    marks: dict[str, Any] = MARKS | {"linewidth": 0, "elinewidth": 1.3, "markerfacecolor": fill}
    axes.errorbar([b.predicted for b in bins], [b.human for b in bins], yerr=half, color=color, label=label, **marks)


def draw_calibration(schema: AttributeSchema, quality: PredictorQuality, target: Storage) -> None:
    """A PNG with the `reliability` of each attribute."""
    title = "Predicted and human values of held-out answers, by decile of the prediction, with 95 % intervals"
    save_png(reliability(schema, quality.attributes), target, title)


def draw_collinearity(found: Collinearity, target: Storage) -> None:
    """A PNG with the matrix of Spearman correlations between people's values, and n, in each cell."""
    names, r_AA, n_AA = found.names, found.spearman, found.n
    places = range(len(names))
    # The diagonal would be 1 everywhere; it shows the number of answers only.
    values = [[None if i == j else r_AA[i][j] for j in places] for i in places]
    texts = [
        [f"n = {n_AA[i][j]:,}" if i == j else f"{shown(r_AA[i][j])}\nn = {n_AA[i][j]:,}" for j in places]
        for i in places
    ]
    scale = "Spearman, over answers rated on both"
    save_png([heat_map("collinearity", "Correlation of people's values", names, names, values, texts, scale)], target)
