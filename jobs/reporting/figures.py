"""The canvas of all figures: one function draws a `Plot`, for the page as SVG and for a stage's folder as PNG.

Text in an SVG stays text, its colors are the page's, and the same numbers give the same bytes. A page's plot fits a
phone's width, so that its smallest text is readable where it fills the screen. Knows no run and no page. matplotlib is
imported with the first plot.
"""

import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.attributes import Attribute
from data.printable import printable
from data.storage import Storage
from jobs.reporting.blocks import Figure, finite
from jobs.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (3.6, 2.8)
POINTS = 9.5
"""The smallest text. A page never shows a plot narrower than INCHES, so that this is also its least size in CSS
pixels."""
PNG_COLUMNS, PNG_DPI = 3, 120
MAX_HEADING = 300
COLORS = {
    "ink": ("#20242a", "#e5e3dd"),
    "soft": ("#5c626c", "#a2a7b0"),
    "faint": ("#8b9099", "#8a9099"),
    "line": ("#e2dfd8", "#363a40"),
    "first": ("#1f5fa8", "#74b3f5"),
    "second": ("#c76a10", "#f0a35c"),
}
"""On a light page and on a dark one. Every kind of color blindness keeps blue and orange apart."""
INK, SOFT, FAINT, LINE, FIRST, SECOND = (light for light, _ in COLORS.values())
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
    "legend.columnspacing": 1.0,
    "legend.handlelength": 1.5,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK
    ),
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "text.parse_math": False,  # names of models and runs are text, "$" in them is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "steerlm",
}
MARKS: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linewidth": 1.8}


@dataclass(frozen=True)
class Plot:
    """One pair of axes: a name, what it shows in words and numbers, and the function that draws it."""

    name: str
    alt: str
    draw: Callable[["Axes"], None]
    inches: tuple[float, float] = INCHES


def as_svg(plot: Plot) -> Figure:
    """The plot for a page."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=plot.inches, layout="constrained")
        plot.draw(figure.subplots())
        buffer = io.StringIO()
        no_date = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_date)
    return Figure(plot.name, _for_a_page(plot.name, plot.alt, buffer.getvalue()), plot.alt)


def save_png(plots: Sequence[Plot], target: Storage, title: str = "") -> None:
    """The plots, all of one size, as one picture in rows of three; without a plot no file."""
    if not plots:
        return
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    num_columns = min(PNG_COLUMNS, len(plots))
    num_rows = math.ceil(len(plots) / num_columns)
    width, height = plots[0].inches
    with matplotlib.rc_context(STYLE):
        heading = textwrap.fill(
            printable(title, MAX_HEADING), int(12 * width * num_columns)
        )  # an inch holds 12 characters
        size = (width * num_columns, height * num_rows + 0.25 * len(heading.splitlines()))
        figure = Canvas(figsize=size, layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, plot in zip(panels, plots, strict=False):
            plot.draw(axes)
        for axes in panels[len(plots) :]:
            axes.set_axis_off()
        figure.suptitle(heading, fontsize=POINTS + 1.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=PNG_DPI)
    target.write_bytes(buffer.getvalue())


def _for_a_page(name: str, alt: str, svg: str) -> str:
    """Without its own sizes and style; its ids begin with `name`, and its colors are the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, (light, _) in COLORS.items():
        svg = svg.replace(light, f"var(--{variable}, {light})")
    (box,) = re.findall(r'viewBox="[^"]*"', svg[:1000])
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {names} {box} role="img" aria-label="{html.escape(alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1).rstrip()


def standalone(figure: Figure) -> str:
    """The same picture as a file of its own, on a light ground and on a dark one."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLORS.items()) for i in (0, 1))
    themes = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    head, _, rest = figure.svg.partition(">")
    return f"{head}><style>{themes}*{{stroke-linejoin:round;stroke-linecap:butt}}</style>{rest}\n"


# --- what several plots have in common --------------------------------------------------------------------------------


def heat_map(
    name: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    scale: str,
    labels: tuple[str, str] = ("", ""),
) -> Plot:
    """Values from -1 (blue) to 1 (red), a text in each cell; None is gray. `labels` are the axes' own: below, and to
    the left."""

    def draw(axes: "Axes") -> None:
        import matplotlib

        colors = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.92")
        grid = [[or_nan(value) for value in line] for line in values]
        image = axes.imshow(grid, cmap=colors, vmin=-1, vmax=1, aspect="auto")
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                color = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, texts[i][j], ha="center", va="center", color=color)
        axes.set_xticks(range(len(columns)), map(printable, columns), rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), map(printable, rows))
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label=scale).outline.set_visible(False)

    return Plot(name, title, draw, (3.0 + 0.95 * len(columns), 2.2 + 0.7 * len(rows)))


def diagonal(axes: "Axes", attribute: Attribute, label: str) -> None:
    """The dashed line on which both values are equal."""
    ends = [attribute.low, attribute.high]
    axes.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1.2, zorder=1, label=label)


def titled(axes: "Axes", title: str, note: str) -> None:
    """A title, and a line of numbers under it."""
    axes.set_title(f"{title}\n" if note else title)
    axes.text(0.5, 1.03, note, transform=axes.transAxes, ha="center", va="bottom", color=SOFT)


def legend_above(axes: "Axes", num_columns: int) -> None:
    """A legend in a strip above all that is drawn."""
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    axes.set_ylim(low, high + 0.22 * (high - low))
    axes.set_yticks(ticks)
    axes.legend(loc="upper center", ncols=num_columns)


def whole_ticks(*axes: Any) -> None:
    """At most six ticks, at whole numbers."""
    few_ticks(*axes, integer=True)


def few_ticks(*axes: Any, **where: Any) -> None:
    """At most six ticks; `where`: more of MaxNLocator's options."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(5, **where))


def or_nan(value: object) -> float:
    number = finite(value)
    return math.nan if number is None else number


def number(value: object) -> str:
    return shown(finite(value), unknown="unknown")
