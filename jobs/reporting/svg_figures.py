"""The report's figures, each a small SVG: text stays text, colours are the page's, and the same numbers give the same bytes. Knows no run and no page.

Made for a phone's width: small multiples, one idea each, so that the smallest text is readable where a figure fills the screen.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
from matplotlib.ticker import MaxNLocator

from data.attributes import Attribute
from data.measures import NORMAL_95
from jobs.reporting.blocks import Figure, finite, shown
from jobs.runner.stage import Metrics

INCHES = (3.6, 2.8)
POINTS = 9.5
"""The smallest text. A figure is never narrower on the page than it is here (INCHES in points), so that this is its least size in CSS pixels."""
COLOURS = {
    "ink": ("#20242a", "#e5e3dd"),
    "faint": ("#8b9099", "#8a9099"),
    "line": ("#e2dfd8", "#363a40"),
    "first": ("#1f5fa8", "#74b3f5"),
    "second": ("#c76a10", "#f0a35c"),
}
"""On light ground and on dark. Blue and orange keep apart for every kind of colour blindness."""
INK, FAINT, LINE, FIRST, SECOND = (light for light, _ in COLOURS.values())
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": POINTS,
    "axes.titlesize": POINTS + 1.5,
    "axes.titleweight": "bold",
    "axes.labelsize": POINTS,
    "xtick.labelsize": POINTS,
    "ytick.labelsize": POINTS,
    "legend.fontsize": POINTS,
    "legend.frameon": False,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.25,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK
    ),
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "svg.fonttype": "none",
    "svg.hashsalt": "steerlm",
}
MARKS: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linewidth": 1.8}


def drawn(name: str, alt: str, draw: Callable[[matplotlib.axes.Axes], None]) -> Figure:
    """The figure that `draw` puts on one pair of axes."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=INCHES, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return Figure(name, _for_a_page(name, alt, buffer.getvalue()), alt)


def _for_a_page(name: str, alt: str, svg: str) -> str:
    """Without its own sizes and style, ids that no other figure on the page has, and the page's colours in place of ours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable}, {light})")
    (box,) = re.findall(r'viewBox="[^"]*"', svg[:1000])
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return re.sub(
        r"<svg[^>]*>", f'<svg {names} {box} role="img" aria-label="{html.escape(alt)}">', svg, count=1
    ).rstrip()


def standing_alone(figure: Figure) -> str:
    """The same picture as a file of its own, on light ground and on dark."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}*{{stroke-linejoin:round;stroke-linecap:butt}}</style>"
    head, _, rest = figure.svg.partition(">")
    return f"{head}>{style}{rest}\n"


def steering(attribute: Attribute, row: Metrics) -> Figure:
    """Asked against measured, with the band in which the mean lies."""
    asked, measured = row["requested"], [_or_nan(v) for v in row["measured"]]
    pairs = ", ".join(f"{a:g} gives {shown(m)}" for a, m in zip(asked, measured, strict=True))
    band = "low" in row and "high" in row

    def draw(axes: matplotlib.axes.Axes) -> None:
        axes.plot(
            [attribute.low, attribute.high],
            [attribute.low, attribute.high],
            color=FAINT,
            linestyle="--",
            linewidth=1.2,
            label="as asked",
        )
        if band:
            axes.fill_between(
                asked,
                [_or_nan(v) for v in row["low"]],
                [_or_nan(v) for v in row["high"]],
                color=FIRST,
                alpha=0.25,
                linewidth=0,
            )
        axes.plot(asked, measured, color=FIRST, label="measured", **MARKS)
        axes.set(title=attribute.name, xlabel="asked", ylabel="measured (mean)", xticks=asked)
        margin = 0.04 * (attribute.high - attribute.low)
        axes.set_ylim(
            bottom=min(attribute.low - margin, axes.get_ylim()[0]), top=max(attribute.high + margin, axes.get_ylim()[1])
        )
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="upper left" if (finite(row.get("spearman")) or 0) >= 0 else "upper right")

    return drawn(f"steering-{attribute.name}", f"{attribute.name}: measured against asked; {pairs}.", draw)


def losses(name: str, title: str, training: Metrics) -> Figure:
    """The loss by step, what was held out, and the step whose weights were kept."""
    trained, held_out = training["losses"], training.get("validations") or []
    ends = [p["loss"] for p in trained][:1] + [p["loss"] for p in trained][-1:]
    alt = (
        f"{title}: the loss on what was trained on, from {shown(ends[0], 3)} to {shown(ends[-1], 3)}"
        if ends
        else f"{title}: no step was logged"
    )
    alt += f"; held out, at last {shown(held_out[-1]['loss'], 3)}." if held_out else "."

    def draw(axes: matplotlib.axes.Axes) -> None:
        axes.plot(
            [p["step"] for p in trained],
            [_or_nan(p["loss"]) for p in trained],
            color=FIRST,
            linewidth=1.6,
            label="trained on",
        )
        if held_out:
            points = [v["step"] for v in held_out], [_or_nan(v["loss"]) for v in held_out]
            axes.plot(*points, color=SECOND, label="held out", **(MARKS if len(held_out) < 30 else {"linewidth": 1.6}))
            axes.axvline(training["saved_step"], ymax=0.83, color=FAINT, linestyle=":", linewidth=1.5, label="kept")
        axes.set(title=title, xlabel="step", ylabel="mean loss")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))  # room for the legend
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="upper center", ncols=3, columnspacing=1.0, handlelength=1.5)

    return drawn(name, alt, draw)


def histogram(attribute: Attribute, before: Sequence[int], after: Sequence[int]) -> Figure:
    """How often each value of the scale was given: by people before annotation, by the predictor after it."""
    values = list(range(attribute.low, attribute.high + 1))
    shares = [[100 * n / max(1, sum(counts)) for n in counts] for counts in (before, after)]
    alt = f"{attribute.name}: share of the answers at each value, people and predictor; " + ", ".join(
        f"{v}: {p:.0f} % and {q:.0f} %" for v, p, q in zip(values, *shares, strict=True)
    )

    def draw(axes: matplotlib.axes.Axes) -> None:
        axes.bar([v - 0.2 for v in values], shares[0], width=0.38, color=FIRST, label=f"people ({sum(before):,})")
        axes.bar([v + 0.2 for v in values], shares[1], width=0.38, color=SECOND, label=f"predictor ({sum(after):,})")
        axes.set(title=attribute.name, xlabel="value", ylabel="% of rated answers", xticks=values)
        highest = max(1, *shares[0], *shares[1])
        axes.set_ylim(0, 1.35 * highest)  # room for the legend
        _ticks(axes, 0, highest)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right")

    return drawn(f"values-{attribute.name}", f"{alt}.", draw)


def reliability(attribute: Attribute, row: Metrics) -> Figure:
    """Do people say what the predictor says? Held-out answers by decile of the prediction, with 95 % intervals."""
    bins = row["reliability"]
    half = [NORMAL_95 * (finite(b.get("se")) or 0.0) for b in bins]
    alt = f"{attribute.name}: people's mean value against the predictor's, by decile; " + ", ".join(
        f"{shown(b['predicted'])} is {shown(b['human'])}" for b in bins
    )

    def draw(axes: matplotlib.axes.Axes) -> None:
        axes.plot(
            [attribute.low, attribute.high],
            [attribute.low, attribute.high],
            color=FAINT,
            linestyle="--",
            linewidth=1.2,
            label="perfect",
        )
        marks: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linewidth": 0, "elinewidth": 1.3}
        axes.errorbar(
            [b["predicted"] for b in bins],
            [b["human"] for b in bins],
            yerr=half,
            color=FIRST,
            label="held out",
            **marks,
        )
        axes.set(title=attribute.name, xlabel="predicted (mean)", ylabel="people (mean)")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="upper left")

    return drawn(f"reliability-{attribute.name}", f"{alt}.", draw)


def by_round(
    name: str,
    title: str,
    numbers: Sequence[int],
    series: Sequence[tuple[str, Sequence[float | None]]],
    scale: tuple[float, float],
) -> Figure:
    """One or two series over the bootstrap rounds; round 0 is the policy before the first. All of `scale` is shown: small changes look small."""
    said = "; ".join(
        f"{label + ': ' if label else ''}{', '.join(shown(v, 3) for v in values)}" for label, values in series
    )

    def draw(axes: matplotlib.axes.Axes) -> None:
        for (label, values), colour, line in zip(series, (FIRST, SECOND), ("-", "--"), strict=False):
            axes.plot(numbers, [_or_nan(v) for v in values], color=colour, linestyle=line, label=label, **MARKS)
        axes.set(title=title, xlabel="round", xticks=numbers)
        known = [v for _, values in series for v in values if v is not None]
        low, high = min([scale[0], *known]), max([scale[1], *known])
        axes.set_ylim(low - 0.04 * (high - low), high + 0.25 * (high - low))  # room for the legend
        _ticks(axes, low, high)
        if any(label for label, _ in series):
            axes.legend(loc="upper right", ncols=2)

    return drawn(name, f"{title}, round by round from {numbers[0]}; {said}.", draw)


def _ticks(axes: matplotlib.axes.Axes, low: float, high: float) -> None:
    """Round values within the scale, none in the room above it."""
    axes.set_yticks(
        [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    )


def _or_nan(value: object) -> float:
    number = finite(value)
    return float("nan") if number is None else number
