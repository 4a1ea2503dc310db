"""Pictures of the report: each dial's curve with its band, the cross-talk, the judge beside the truth, and what bootstrap rounds did.

Draws figures of `jobs.evaluation.steering_metrics`, of answers and of promotion decisions; computes none of its own but what marks show.
"""

import math
from collections.abc import Sequence

import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np

from data.attributes import Attribute, AttributeSchema
from data.storage import Storage
from jobs.evaluation.ask import Answers
from jobs.reporting.png import save_png
from jobs.runner.stage import Metrics

COLUMNS = 3
PANEL_INCHES = 3.4
BLUE, ORANGE = "#1f5fa8", "#e08214"
"""They keep apart for every kind of colour blindness."""
SPREAD = (5, 95)
"""Percentiles of the judge's scores that a mark's line reaches from and to."""


def draw_steering(title: str, schema: AttributeSchema, table: Metrics, measured_by: str, target: Storage) -> None:
    """A PNG with a panel for each dial that was turned: requested against measured, with the 95 % band of the means."""
    dials = [a for a in schema.attributes if a.name in table]
    figure, panels = _panels(len(dials))
    for axes, dial in zip(panels, dials, strict=True):
        row = table[dial.name]
        _diagonal(axes, dial, "as asked")
        low, high = ([math.nan if v is None else v for v in row[key]] for key in ("low", "high"))
        axes.fill_between(
            row["requested"], low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % band of the mean"
        )
        axes.plot(row["requested"], row["measured"], color=BLUE, marker="o", markersize=5, label="mean measured")
        said = f"Spearman {_number(row['spearman'])}, slope {_number(row['slope'])}, {row['n']:,} answers"
        _title(axes, dial.name, said if row["monotonic"] else f"{said}, not monotonic")
    _finish(figure, panels, f"{title}: does the dial turn? Measured {measured_by}", "requested", "measured")
    save_png(figure, target)


def draw_cross_talk(metrics: Metrics, target: Storage) -> None:
    """A PNG with the matrix of slopes: the dial that is turned to the left, what is measured below; blue is negative, red positive."""
    turned, measured = metrics["attributes"], metrics["measured"]
    slopes = np.array([[math.nan if s is None else s for s in line] for line in metrics["slope"]], float).reshape(
        len(turned), len(measured)
    )
    figure = matplotlib.figure.Figure(
        figsize=(2.8 + 0.95 * len(measured), 2.0 + 0.8 * len(turned)), layout="constrained"
    )
    axes = figure.subplots()
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.92")
    image = axes.imshow(slopes, cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for i, line in enumerate(slopes):
        for j, value in enumerate(line):
            own = turned[i] == measured[j]
            said = "–" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"
            axes.text(
                j,
                i,
                said,
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if own else "normal",
                color="white" if abs(value) > 0.6 else "black",
            )
    axes.set_xticks(range(len(measured)), measured, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(turned)), turned)
    axes.set(xlabel="measured", ylabel="dial that is turned")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Turn one dial: what moves?", fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.8, extend="both", label="points per point asked")
    save_png(figure, target)


def draw_judge(schema: AttributeSchema, answers: Answers, metrics: Metrics, target: Storage) -> None:
    """A PNG with a panel for each attribute: what the predictor says of answers that truly have a value, over all `answers`."""
    figure, panels = _panels(len(schema.attributes))
    for axes, attribute in zip(panels, schema.attributes, strict=True):
        pairs = [
            (values[attribute.name], row.predicted[-1].get(attribute.name, math.nan))
            for row, values in answers.measured
            if attribute.name in values
        ]
        _diagonal(axes, attribute, "as the truth")
        _scores(axes, np.array([p for p in pairs if not math.isnan(p[1])], float).reshape(-1, 2))
        row = metrics[attribute.name]
        _title(axes, attribute.name, f"Spearman {_number(row['spearman'])}, slope {_number(row['slope'])} where turned")
    _finish(
        figure,
        panels,
        "How far can the predictor be trusted? All answers of the report",
        "true value, exactly measured",
        "predicted value",
    )
    save_png(figure, target)


def _scores(axes: matplotlib.axes.Axes, pairs_N2: np.ndarray) -> None:
    """Mean score at each true value, with a line over most of the scores, and how many answers those are."""
    truth_N, predicted_N = pairs_N2.T
    for value in np.unique(truth_N):
        scores = predicted_N[truth_N == value]
        low, high = np.percentile(scores, SPREAD)
        axes.plot(
            [value, value],
            [low, high],
            color=ORANGE,
            linewidth=2,
            solid_capstyle="round",
            label=f"{SPREAD[0]} to {SPREAD[1]} % of the answers",
        )
        axes.plot([value], [scores.mean()], color=BLUE, marker="o", linewidth=0, markersize=6, label="mean")
        axes.annotate(
            f"{len(scores):,}",
            (value, high),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color="0.4",
        )


def draw_rounds(title: str, schema: AttributeSchema, rounds: Sequence[Metrics], target: Storage) -> None:
    """A PNG of what bootstrap did: steering, variety, length, and predicted against true means, round by round; of no round, none."""
    if not rounds:
        return
    figure = matplotlib.figure.Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    numbers = [r["round"] for r in rounds]
    for axes, about, values in (
        (panels[0, 0], "Spearman of asked and measured, mean over dials", [r["mean_spearman"] for r in rounds]),
        (panels[0, 1], "distinct-2: share of different pairs of words", [r["drift"]["distinct_2"] for r in rounds]),
        (panels[1, 0], "words in an answer", [r["drift"]["words"] for r in rounds]),
    ):
        axes.plot(numbers, values, marker="o")
        axes.set(title=about, xticks=numbers, xlabel="round")
    last = panels[1, 1]
    for name in schema.names:
        (line,) = last.plot(
            numbers, [r["drift"]["predicted"].get(name, math.nan) for r in rounds], marker="o", label=name
        )
        if all("true" in r["drift"] for r in rounds):
            last.plot(
                numbers, [r["drift"]["true"].get(name, math.nan) for r in rounds], linestyle=":", color=line.get_color()
            )
    last.set(title="mean of each attribute, predicted (and true: dotted)", xticks=numbers, xlabel="round")
    last.legend(fontsize="small")
    kept = ", ".join(f"{r['round']} {'' if r['promoted'] else 'not '}promoted" for r in rounds[1:])
    figure.suptitle(f"{title}: bootstrap rounds ({kept})")
    save_png(figure, target)


def _panels(count: int) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    """As many panels as asked for, in rows of three; what is left of the last row is empty."""
    num_rows, num_columns = math.ceil(count / COLUMNS), min(COLUMNS, count)
    figure = matplotlib.figure.Figure(
        figsize=(PANEL_INCHES * num_columns, (PANEL_INCHES + 0.35) * num_rows + 0.8), layout="constrained"
    )
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _diagonal(axes: matplotlib.axes.Axes, attribute: Attribute, label: str) -> None:
    ends = [attribute.low, attribute.high]
    axes.plot(ends, ends, color="0.6", linestyle="--", linewidth=1, zorder=1, label=label)
    ticks = list(range(attribute.low, attribute.high + 1))
    axes.set(xticks=ticks, yticks=ticks)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: matplotlib.axes.Axes, name: str, said: str) -> None:
    axes.set_title(f"{name}\n", fontsize=11, fontweight="bold")
    axes.text(0.5, 1.02, said, transform=axes.transAxes, ha="center", va="bottom", fontsize=8, color="0.3")


def _finish(
    figure: matplotlib.figure.Figure, panels: Sequence[matplotlib.axes.Axes], title: str, x: str, y: str
) -> None:
    """One legend for all panels, and names of the axes at the edges."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title}\n", fontsize=10.5)
    for i, axes in enumerate(panels):
        axes.set_ylabel(y if i % COLUMNS == 0 else "")
        axes.set_xlabel(x if i + COLUMNS >= len(panels) else "")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
