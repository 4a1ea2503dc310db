"""Stage `ablation/report`: all arms as a table and a plot, mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from data.run_layout import as_json
from data.steering_metrics import AblationMetrics, ArmMetrics, SeedSpread
from data.storage import Storage
from jobs.ablation.arms import ARMS
from jobs.reporting.figures import FIRST, INK, Plot, save_png
from jobs.reporting.tables import Table, as_text, between
from jobs.runner.stage import Run, Stage, log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Summaries = Mapping[str, Mapping[str, SeedSpread | None]]
"""Arm -> column -> spread over seeds."""
Interval = tuple[float | None, float | None]
Intervals = Mapping[str, Mapping[str, Interval]]
"""Arm -> metric -> its 95 % interval over questions."""
TABLE, PLOT = "ablation.json", "ablation.png"
COLUMNS = {
    "quality": "true quality",
    "gap_at_best": "gap at best",
    "mean_spearman": "steering",
    "mean_absolute_gap": "others move",
    "request_gap": "gap, all",
    "held_out": "gap, unseen",
    "distinct_2": "distinct-2",
    "words": "words",
    "tokens": "tokens",
}
"""Metric of an arm -> the head of its column."""
LEGEND = (
    "true quality: the leading attribute, all attributes requested at their best; gap at best: mean distance of all "
    "attributes from that request; steering: Spearman of requested and measured, mean over attributes; others move: "
    "mean absolute gap of the others when one is varied; gap, all: mean of |requested - measured| over all settings of "
    "one attribute or of all at once; gap, unseen: distance from combinations that no row has. "
    "All in points of the scale but steering."
)
SEVERAL_SEEDS = "Mean and standard deviation over seeds."
ONE_SEED = "In brackets: 95 % intervals over questions; another seed of training would differ more."


def report_stage(arms: Sequence[str], seeds: int) -> Stage:
    needs = tuple(f"ablation/{seed}/{name}/report" for seed in range(seeds) for name in arms)
    return Stage("ablation/report", needs, lambda preset: {}, partial(_work, arms=arms, seeds=seeds))


def _work(run: Run, folder: Storage, arms: Sequence[str], seeds: int) -> AblationMetrics:
    stages = {name: [f"ablation/{seed}/{name}/report" for seed in range(seeds)] for name in arms}
    reports = {
        name: [found for stage in own if (found := run.metrics(stage, ArmMetrics))] for name, own in stages.items()
    }
    summaries = {
        name: {column: summary([value_of(r, column) for r in found]) for column in COLUMNS}
        for name, found in reports.items()
    }
    spearman = {
        name: {attribute: summary([r.spearman.get(attribute) for r in found]) for attribute in run.schema.names}
        for name, found in reports.items()
    }
    measured_by = reports[arms[0]][0].measured_by
    alone = {name: found[0].intervals for name, found in reports.items()} if seeds == 1 else {}
    metrics = AblationMetrics(seeds=seeds, measured_by=measured_by, arms=summaries, spearman=spearman, intervals=alone)
    single = {name: [as_json(report) for report in found] for name, found in reports.items()}
    (folder / TABLE).write_json(as_json(metrics) | {"reports": single})
    for line in (*lines(summaries, alone), *spearman_lines(spearman, alone)):
        log(line)
    log(f"measured {measured_by}; {LEGEND} {ONE_SEED if alone else SEVERAL_SEEDS}")
    quality = _bars("quality", f"{run.preset.bootstrap.leading}, all requested at best", summaries)
    steering = _bars("mean_spearman", "mean Spearman over attributes", summaries)
    save_png([quality, steering], folder / PLOT, f"{run.preset.run}: what each step adds, measured {measured_by}")
    return metrics


def value_of(report: ArmMetrics, column: str) -> float | None:
    """An arm's metric with one seed; None where it has none (plain fine-tuning has no attribute to request)."""
    if column == "held_out":
        return report.held_out.mean_absolute_gap if report.held_out else None
    value = getattr(report.drift if column in ("distinct_2", "words") else report, column)
    return None if value is None else float(value)


def summary(values: Sequence[float | None]) -> SeedSpread | None:
    """`mean` and standard deviation `sd` over seeds (0 for one); None if there is nothing."""
    found = [v for v in values if v is not None and np.isfinite(v)]
    if not found:
        return None
    deviation = round(float(np.std(found, ddof=1)), 4) if len(found) > 1 else 0.0
    return SeedSpread(mean=round(float(np.mean(found)), 4), sd=deviation)


def lines(summaries: Summaries, intervals: Intervals | None = None) -> list[str]:
    """A line for each arm, with the columns that any arm has; `intervals` are shown in place of a spread over seeds."""
    columns = [column for column in COLUMNS if any(row[column] for row in summaries.values())]
    rows = [
        [ARMS[name].title, *(_cell(row[column], (intervals or {}).get(name, {}).get(column)) for column in columns)]
        for name, row in summaries.items()
    ]
    return as_text(Table("", ["", *(COLUMNS[column] for column in columns)], rows))


def spearman_lines(spearman: Summaries, intervals: Intervals | None = None) -> list[str]:
    """A line for each arm: the Spearman of each attribute."""
    names = list(next(iter(spearman.values()), {}))
    rows = [
        [ARMS[arm].title, *(_cell(row[name], (intervals or {}).get(arm, {}).get(name)) for name in names)]
        for arm, row in spearman.items()
        if any(row.values())
    ]
    return as_text(Table("Spearman of requested and measured values", ["", *names], rows)) if rows else []


def _cell(found: SeedSpread | None, interval: Interval | None = None) -> str | None:
    if found is None:
        return None
    if found.mean > 1000:
        return f"{found.mean:,.0f}"
    return between(found.mean, *interval, 3) if interval else f"{found.mean:.3f} ± {found.sd:.3f}"


def _bars(column: str, title: str, summaries: Summaries) -> Plot:
    """A bar for each arm, with its spread over seeds."""

    def draw(axes: "Axes") -> None:
        titles = [ARMS[name].title for name in summaries]
        found = [row[column] or SeedSpread(mean=0.0, sd=0.0) for row in summaries.values()]
        spread = [f.sd for f in found]
        axes.barh(titles, [f.mean for f in found], xerr=spread, color=FIRST, ecolor=INK, capsize=4)
        axes.set(title=title)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()

    return Plot(f"ablation-{column}", title, draw, (5.5, 3.6))
