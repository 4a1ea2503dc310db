"""Stage `ablation/report`: the ladder as a table and a plot, mean and spread over seeds."""

from collections.abc import Sequence
from functools import partial

import matplotlib.figure
import numpy as np

from data.storage import Storage
from jobs.ablation.arms import ARMS
from jobs.reporting.png import save_png
from jobs.runner.stage import Metrics, Run, Stage, log

COLUMNS = {
    "quality": "true quality",
    "gap_at_best": "gap at best",
    "mean_spearman": "steering",
    "mean_absolute_gap": "off target",
    "held_out": "unseen, off by",
    "distinct_2": "distinct-2",
    "words": "words",
    "tokens": "tokens",
}
"""Figure of a rung -> the head of its column."""
LEGEND = (
    "true quality: the leading attribute with all dials at best; off best: distance of all attributes from what was asked there; steering: Spearman of asked "
    "and measured, mean over dials; off target: how far the others move when a dial is turned; unseen: distance from combinations that no row has. All in "
    "points of the scale but steering. Mean and standard deviation over seeds."
)


def report_stage(arms: Sequence[str], seeds: int) -> Stage:
    needs = tuple(f"ablation/{seed}/{name}/report" for seed in range(seeds) for name in arms)
    return Stage("ablation/report", needs, lambda preset: {}, partial(_work, arms=arms, seeds=seeds))


def _work(run: Run, folder: Storage, arms: Sequence[str], seeds: int) -> Metrics:
    reports = {
        name: [(run.manifest(f"ablation/{seed}/{name}/report") or {})["metrics"] for seed in range(seeds)]
        for name in arms
    }
    ladder = {
        name: {column: summary([value_of(r, column) for r in found]) for column in COLUMNS}
        for name, found in reports.items()
    }
    dials = {
        name: {dial: summary([r["spearman"].get(dial) for r in found]) for dial in run.schema.names}
        for name, found in reports.items()
    }
    measured_by = reports[arms[0]][0]["measured_by"]
    metrics: Metrics = {"seeds": seeds, "measured_by": measured_by, "ladder": ladder, "spearman": dials}
    (folder / "ladder.json").write_json(metrics | {"reports": reports})
    for line in table(ladder):
        log(line)
    log(f"measured {measured_by}; {LEGEND}")
    _plot(run, ladder, measured_by, folder / "ladder.png")
    return metrics


def value_of(report: Metrics, column: str) -> float | None:
    """A rung's figure with one seed; None where it has none (plain fine-tuning has no dial)."""
    if column == "held_out":
        return report["held_out"]["distance"] if report["held_out"] else None
    value = report["drift"].get(column) if column in ("distinct_2", "words") else report[column]
    return None if value is None else float(value)


def summary(values: Sequence[float | None]) -> Metrics | None:
    """`mean` and standard deviation `sd` over seeds (0 for one); None if there is nothing."""
    found = [v for v in values if v is not None and np.isfinite(v)]
    if not found:
        return None
    return {
        "mean": round(float(np.mean(found)), 4),
        "sd": round(float(np.std(found, ddof=1)), 4) if len(found) > 1 else 0.0,
    }


def table(ladder: Metrics) -> list[str]:
    """Lines for people: a rung each, with the columns that any rung has."""
    shown = [column for column in COLUMNS if any(row[column] for row in ladder.values())]
    lines = [f"{'':34}" + "".join(f"{COLUMNS[column]:>17}" for column in shown)]
    for name, row in ladder.items():
        lines.append(f"{ARMS[name].title:34}" + "".join(f"{_cell(row[column]):>17}" for column in shown))
    return lines


def _cell(figure: Metrics | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:,.0f}" if figure["mean"] > 1000 else f"{figure['mean']:.3f} ± {figure['sd']:.3f}"


def _plot(run: Run, ladder: Metrics, measured_by: str, target: Storage) -> None:
    """Bars with the spread over seeds: quality at best settings, and steering."""
    figure = matplotlib.figure.Figure(figsize=(11, 5), layout="constrained")
    titles = [ARMS[name].title for name in ladder]
    panels = {
        "quality": f"{run.preset.bootstrap.leading}, all dials at best",
        "mean_spearman": "Spearman of asked and measured, mean over dials",
    }
    for axes, (column, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        found = [row[column] or {"mean": 0.0, "sd": 0.0} for row in ladder.values()]
        axes.barh(titles, [f["mean"] for f in found], xerr=[f["sd"] for f in found], color="tab:blue", capsize=4)
        axes.set(title=title, xlabel=f"measured {measured_by}")
        if not axes.yaxis_inverted():  # the panels share it
            axes.invert_yaxis()
    figure.suptitle(f"{run.preset.run}: what each step adds")
    save_png(figure, target)
