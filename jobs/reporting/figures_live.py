"""Figures about production: how far answers are from what was requested, day by day. Draws records, computes none."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data.attributes import Attribute
from jobs.evaluation.live_metrics import LiveCurve, LiveGroup, LiveMetrics
from jobs.reporting.figures import FIRST, MARKS, Plot, few_ticks, or_nan
from jobs.reporting.figures_steering import steering
from jobs.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 4
"""Days below an axis: a phone's width has room for no more."""


def live_plots(found: LiveMetrics) -> list[Plot]:
    """A curve for each attribute; then, where there are several days, the gap of each day."""
    curves = [steering(_attribute(name, curve), curve) for name, curve in found.curves.items()]
    days = [_by_day(name, found.days) for name in found.curves] if len(found.days) > 1 else []
    return [*curves, *days]


def _attribute(name: str, curve: LiveCurve) -> Attribute:
    low, high = curve.scale
    return Attribute(name=name, low=low, high=high, default=low, meaning=name, better="neither")


def _by_day(name: str, days: Mapping[str, LiveGroup]) -> Plot:
    there = {day: group.gaps[name] for day, group in days.items() if name in group.gaps}
    listed = "; ".join(f"{day} {shown(gap)}" for day, gap in there.items())

    def draw(axes: "Axes") -> None:
        places = range(len(days))
        axes.plot(places, [or_nan(there.get(day)) for day in days], color=FIRST, **MARKS)
        axes.set(title=f"{name}: gap", ylabel="points (mean)")
        axes.set_ylim(0, max([*there.values(), 0.1]) * 1.1)
        axes.set_xticks(*_ticks(list(days)))
        few_ticks(axes.yaxis)

    return Plot(f"gap-{name}", f"{name}: mean gap between requested and measured, day by day; {listed}.", draw)


def _ticks(days: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places and month and day of a few, the first one among them."""
    step = -(-len(days) // MAX_TICKS)
    places = list(range(0, len(days), step))
    return places, [days[place][5:] for place in places]
