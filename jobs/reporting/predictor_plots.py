"""Two pictures of a predictor: is a predicted value what people say (reliability diagram), and which of people's values go together.

Draws the figures of `jobs.evaluation.predictor_quality`; computes none of its own but the marks' intervals.
"""

import math

import matplotlib
import matplotlib.axes
import matplotlib.figure

from data.attributes import Attribute, AttributeSchema
from data.measures import NORMAL_95
from data.storage import Storage
from jobs.reporting.png import save_png
from jobs.runner.stage import Metrics

COLUMNS = 3
PANEL_INCHES = 3.4
RAW, STRETCHED = "#1f5fa8", "#e08214"
"""Blue and orange keep apart for every kind of colour blindness."""


def draw_calibration(schema: AttributeSchema, metrics: Metrics, target: Storage) -> None:
    """A PNG with one panel an attribute: mean human value against mean predicted value, by decile of the prediction, raw and calibrated."""
    num_rows = math.ceil(len(schema.attributes) / COLUMNS)
    num_columns = min(COLUMNS, len(schema.attributes))
    figure = matplotlib.figure.Figure(
        figsize=(PANEL_INCHES * num_columns, (PANEL_INCHES + 0.35) * num_rows + 0.8), layout="constrained"
    )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    limits = _limits(schema, metrics)
    for attribute, axes in zip(schema.attributes, panels, strict=False):
        _panel(axes, attribute, metrics["attributes"][attribute.name])
        axes.set(xlim=limits, ylim=limits)
    for axes in panels[len(schema.attributes) :]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "Does a predicted value mean what people say? Answers held out from training, by decile of the prediction\n",
        fontsize=10.5,
    )
    for i, axes in enumerate(panels[: len(schema.attributes)]):
        axes.set_ylabel("people's value (mean, 95 % interval)" if i % num_columns == 0 else "")
        axes.set_xlabel("predicted value (mean)" if i + num_columns >= len(schema.attributes) else "")
    save_png(figure, target)


def _limits(schema: AttributeSchema, metrics: Metrics) -> tuple[float, float]:
    """One range for both axes of all panels. Scores are unbounded: a mark may lie off the scale, and shows it."""
    rows = metrics["attributes"].values()
    shown = [
        b["predicted"] for row in rows for series in (row, row.get("calibrated", row)) for b in series["reliability"]
    ]
    low, high = min([*shown, *(a.low for a in schema.attributes)]), max([*shown, *(a.high for a in schema.attributes)])
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _panel(axes: matplotlib.axes.Axes, attribute: Attribute, row: Metrics) -> None:
    axes.plot(
        [attribute.low, attribute.high],
        [attribute.low, attribute.high],
        color="0.6",
        linestyle="--",
        linewidth=1,
        zorder=1,
        label="perfect",
    )
    # The raw series is drawn last: it lies on top where both agree.
    if "calibrated" in row:
        _series(axes, row["calibrated"]["reliability"], STRETCHED, "white", "after calibration")
    _series(axes, row["reliability"], RAW, RAW, "raw score")
    sizes = sorted(b["n"] for b in row["reliability"])
    each = f"{sizes[0]:,} to {sizes[-1]:,} a mark" if sizes else "no answer"
    correlation = "" if row.get("spearman") is None else f", Spearman {row['spearman']:.2f}"
    axes.set_title(f"{attribute.name}\n", fontsize=11, fontweight="bold")
    axes.text(
        0.5,
        1.02,
        f"n = {row['n']:,} ({each}){correlation}",
        transform=axes.transAxes,
        ha="center",
        va="bottom",
        fontsize=8,
        color="0.3",
    )
    ticks = list(range(attribute.low, attribute.high + 1))
    axes.set(aspect="equal", xticks=ticks, yticks=ticks)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _series(axes: matplotlib.axes.Axes, bins: list[Metrics], colour: str, fill: str, label: str) -> None:
    # An interval needs two answers; a lone one gets a mark without.
    half = [NORMAL_95 * b["se"] if b["se"] is not None else 0.0 for b in bins]
    axes.errorbar(
        [b["predicted"] for b in bins],
        [b["human"] for b in bins],
        yerr=half,
        color=colour,
        marker="o",
        markersize=5,
        markerfacecolor=fill,
        linewidth=0,
        elinewidth=1,
        label=label,
    )


def draw_collinearity(metrics: Metrics, target: Storage) -> None:
    """A PNG with the matrix of Spearman correlations between people's values, and n, in each cell; blue is negative, red positive."""
    names, r_AA, n_AA = (metrics[key] for key in ("names", "spearman", "n"))
    size = 1.6 + 0.95 * len(names)
    figure = matplotlib.figure.Figure(figsize=(size + 1.0, size), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.92")
    image = axes.imshow(
        [[math.nan if r is None or i == j else r for j, r in enumerate(line)] for i, line in enumerate(r_AA)],
        cmap=colours,
        vmin=-1,
        vmax=1,
    )
    for i, line in enumerate(r_AA):
        for j, r in enumerate(line):
            # The diagonal would be 1 everywhere; it only says how many there are.
            said = "" if i == j else "–\n" if r is None else f"{round(r, 2) + 0.0:.2f}\n"
            dark = r is not None and i != j and abs(r) > 0.6
            axes.text(
                j,
                i,
                f"{said}n = {n_AA[i][j]:,}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Which of people's values go together?", fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.8, label="Spearman, over answers rated on both")
    save_png(figure, target)
