"""Figures about witnesses: requested values against what a measure by another maker than the predictor found.

Draws the records of `data.steering_metrics`; computes none of its own.
"""

from typing import TYPE_CHECKING

from data.steering_metrics import ReportMetrics, SteeringCurve, WitnessCurve, WitnessMetrics
from data.storage import Storage
from jobs.reporting.figures import FIRST, MARKS, SECOND, Plot, legend_above, number, or_nan, save_png, titled
from jobs.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def witness_plots(report: ReportMetrics) -> list[Plot]:
    """For each witness of an attribute that was varied: its curve, and the predictor's over it."""
    return [
        _plot(name, witness, witness.attribute, witness.curves[witness.attribute], report.steering[witness.attribute])
        for name, witness in report.witnesses.items()
        if witness.attribute in witness.curves and witness.attribute in report.steering
    ]


def _plot(name: str, witness: WitnessMetrics, attribute: str, heard: WitnessCurve, curve: SteeringCurve) -> Plot:
    """The witness to the left and in blue, with its band; the other measure of the same answers to the right."""
    pairs = ", ".join(f"{r:g} gives {shown(m)}" for r, m in zip(heard.requested, heard.measured, strict=True))

    def draw(axes: "Axes") -> None:
        least, most = ([or_nan(v) for v in ends] for ends in (heard.low, heard.high))
        axes.fill_between(heard.requested, least, most, color=FIRST, alpha=0.25, linewidth=0)
        axes.plot(heard.requested, [or_nan(v) for v in heard.measured], color=FIRST, label=name, **MARKS)
        axes.set(xlabel=f"requested {attribute}", ylabel=witness.unit, xticks=heard.requested)
        other = axes.twinx()
        other.plot(curve.requested, [or_nan(v) for v in curve.measured], color=SECOND, linestyle="--", **MARKS)
        # All of the scale, and room for the legend, as to the left: a magnified noise would look like an effect.
        low, high = min(curve.requested), max(curve.requested)
        other.set(
            ylabel="measured", ylim=(low - 0.05 * (high - low), high + 0.3 * (high - low)), yticks=curve.requested
        )
        other.grid(visible=False)
        axes.plot([], [], color=SECOND, linestyle="--", label="measured", **MARKS)
        note = f"Spearman {number(heard.spearman)}, of measured {number(curve.spearman)}"
        titled(axes, f"{attribute}: {name}", note)
        legend_above(axes, 2)

    return Plot(f"witness-{name}", f"{attribute} requested against {name} of the answers; {pairs}.", draw)


def draw_witnesses(report: ReportMetrics, target: Storage) -> None:
    """A PNG with all plots; without a witness no file."""
    save_png(witness_plots(report), target, "Requested values and what outside witnesses measured")
