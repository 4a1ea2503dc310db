"""Figures about public benchmarks: the score of a task at each setting of the attributes."""

from typing import TYPE_CHECKING

from data.benchmark_metrics import BenchmarkTable, SettingScores
from jobs.reporting.figures import FIRST, Plot, or_nan, titled
from jobs.reporting.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def score_plots(found: BenchmarkTable) -> list[Plot]:
    """One for each task: its first metric, which is the one that lm-eval lists first."""
    first = {row.task: row for row in reversed(found.scores)}
    return [_plot(row, list(found.settings)) for row in reversed(first.values())]


def _plot(row: SettingScores, settings: list[str]) -> Plot:
    values = [or_nan(row.at[name].value) if name in row.at else or_nan(None) for name in settings]
    bounds = [
        (row.at[name].bounds if name in row.at else None) or (v, v) for name, v in zip(settings, values, strict=True)
    ]
    # An interval of ratings may leave out the mean by a hair.
    errors = [[max(0.0, v - low) for v, (low, _) in zip(values, bounds, strict=True)]]
    errors += [[max(0.0, high - v) for v, (_, high) in zip(values, bounds, strict=True)]]
    pairs = ", ".join(f"{name} {shown(value, 3)}" for name, value in zip(settings, values, strict=True))

    def draw(axes: "Axes") -> None:
        places = range(len(settings))
        axes.errorbar(places, values, errors, color=FIRST, marker="o", linestyle="none", capsize=3)
        axes.set_xticks(places, settings, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(settings) - 0.5)
        titled(axes, row.task, row.metric)

    return Plot(f"benchmark-{row.task}", f"{row.metric} of {row.task} at each setting: {pairs}.", draw)
