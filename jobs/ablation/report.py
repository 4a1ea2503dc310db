"""Stage `ablation/report`: all arms as a table and a plot, mean and spread over seeds."""

from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib.axes
import numpy as np

from data.run_layout import as_json
from data.steering_metrics import AblationMetrics, ArmMetrics, SeedSpread
from data.storage import Storage
from jobs.ablation.arms import ARMS
from jobs.reporting.figures import FIRST, INK, Plot, save_png
from jobs.reporting.tables import Table, as_text
from jobs.runner.stage import Run, Stage, log

Summaries = Mapping[str, Mapping[str, SeedSpread | None]]
"""Arm -> column -> spread over seeds."""
TABLE, PLOT = "ablation.json", "ablation.png"
COLUMNS = {
    "quality": "true quality",
    "gap_at_best": "gap at best",
    "mean_spearman": "steering",
    "mean_absolute_gap": "others move",
    "held_out": "gap, unseen",
    "distinct_2": "distinct-2",
    "words": "words",
    "tokens": "tokens",
}
"""Metric of an arm -> the head of its column."""
LEGEND = (
    "true quality: the leading attribute, all attributes requested at their best; gap at best: mean distance of all "
    "attributes from that request; steering: Spearman of requested and measured, mean over attributes; others move: "
    "mean absolute gap of the others when one is varied; gap, unseen: distance from combinations that no row has. "
    "All in points of the scale but steering. Mean and standard deviation over seeds."
)


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
    metrics = AblationMetrics(seeds=seeds, measured_by=measured_by, arms=summaries, spearman=spearman)
    single = {name: [as_json(report) for report in found] for name, found in reports.items()}
    (folder / TABLE).write_json(as_json(metrics) | {"reports": single})
    for line in lines(summaries):
        log(line)
    log(f"measured {measured_by}; {LEGEND}")
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


def lines(summaries: Summaries) -> list[str]:
    """A line for each arm, with the columns that any arm has."""
    columns = [column for column in COLUMNS if any(row[column] for row in summaries.values())]
    rows = [[ARMS[name].title, *(_cell(row[column]) for column in columns)] for name, row in summaries.items()]
    return as_text(Table("", ["", *(COLUMNS[column] for column in columns)], rows))


def _cell(found: SeedSpread | None) -> str | None:
    if found is None:
        return None
    return f"{found.mean:,.0f}" if found.mean > 1000 else f"{found.mean:.3f} ± {found.sd:.3f}"


def _bars(column: str, title: str, summaries: Summaries) -> Plot:
    """A bar for each arm, with its spread over seeds."""

    def draw(axes: matplotlib.axes.Axes) -> None:
        titles = [ARMS[name].title for name in summaries]
        found = [row[column] or SeedSpread(mean=0.0, sd=0.0) for row in summaries.values()]
        spread = [f.sd for f in found]
        axes.barh(titles, [f.mean for f in found], xerr=spread, color=FIRST, ecolor=INK, capsize=4)
        axes.set(title=title)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()

    return Plot(f"ablation-{column}", title, draw, (5.5, 3.6))
