"""What a judge's verdicts come to, as figures, a table for people and a plot. Knows no endpoint: stored verdicts give the same figures."""

from collections.abc import Sequence

import matplotlib.axes
import matplotlib.figure

from data.comparisons import (
    Metrics,
    by,
    counters,
    games,
    mean_rating,
    pairwise_comparisons,
    percent,
    position_bias,
    problems,
    rated,
)
from data.elo import ratings
from data.storage import Storage
from data.verdicts import Verdict
from jobs.reporting.png import save_png

BELOW: Metrics = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 4, "fontsize": "small"}
"""Where a legend hides no bar."""


def metrics_of(
    verdicts: Sequence[Verdict], models: Sequence[str], reference: str, resamples: int, seed: int
) -> Metrics:
    """`models` in the order of the report: each pair is told from the side of the one named first."""
    found = pairwise_comparisons(verdicts, models)
    met = list(dict.fromkeys((d.one, d.other) for d in found))
    pairs = []
    for one, other in met:
        theirs = [d for d in found if (d.one, d.other) == (one, other)]
        pairs.append(
            {
                "model": one,
                "against": other,
                **counters(theirs),
                "categories": by("category", theirs),
                "turns": by("turn", theirs),
            }
        )
    marks = {model: rated(verdicts, model) for model in models}
    singles = any(v.kind == "single" for v in verdicts)
    others = [model for model in models if model != reference] if any(marks.values()) else []
    return {
        "models": list(models),
        "reference_model": reference,
        "pairs": pairs,
        "position": position_bias(found) if found else None,
        "ratings": ratings(games(found), resamples, seed),
        "single": {model: mean_rating(marks[model], resamples, seed) for model in models} if singles else {},
        "percent_of_reference": {model: percent(marks[model], marks[reference], resamples, seed) for model in others},
        "counts": {
            kind: problems([v for v in verdicts if v.kind == kind])
            for kind in ("pair", "single")
            if any(v.kind == kind for v in verdicts)
        },
    }


def table(report: Metrics) -> list[str]:
    """Lines for people."""
    lines = [line for pair in report["pairs"] for line in _pair_lines(pair)]
    if position := report["position"]:
        lines.append(
            f"position: of {position['comparisons']} comparisons with both verdicts {_share(position['changed'])} changed with the order, {_share(position['reversed'])} "
            f"reversed; first place won {_share(position['first_place'])}{_span(position['first_place_interval'], 100, ' %')} of {position['decided']} decided"
        )
    for model, found in report["ratings"].items():
        lines.append(
            f"  {model:32} Bradley-Terry {found['bradley_terry']:7.1f}{_span(found['bradley_terry_interval'])}   "
            f"Elo {found['elo']:7.1f}{_span(found['elo_interval'])}   {found['games']} games"
        )
    for model, found in report["single"].items():
        mean = (
            "no rating"
            if found["mean"] is None
            else f"rated {found['mean']:.2f} of 10{_span(found['interval'])}, {found['n']} answers"
        )
        lines.append(
            f"  {model:32} {mean}{''.join(f'  turn {turn}: {value:.2f}' for turn, value in found['turns'].items())}"
        )
    for model, found in report["percent_of_reference"].items():
        if found["percent"] is not None:
            lines.append(
                f"  {model:32} {found['percent']:.1f} % of {report['reference_model']}{_span(found['interval'])}, {found['n']} answers"
            )
            lines.append(
                "    "
                + "  ".join(f"{name or 'no category'} {value:.1f}" for name, value in found["categories"].items())
            )
    for kind, found in report["counts"].items():
        errors = "".join(f", {n} x {reason}" for reason, n in found["errors"].items())
        lines.append(
            f"{kind}: {found['verdicts']} verdicts of {found['judged']}; {found['unparsable']} unparsable{errors}"
        )
    return lines


def _pair_lines(pair: Metrics) -> list[str]:
    def line(name: str, found: Metrics) -> str:
        rate = (
            "      -"
            if found["win_rate"] is None
            else f"{100 * found['win_rate']:6.1f} %{_span(found['interval'], 100)}"
        )
        return f"  {name:24} {found['win']:5} {found['tie']:5} {found['loss']:5} {found['without_verdict']:10}  {rate}"

    lines = [
        f"{pair['model']} against {pair['against']}",
        f"  {'':24} {'win':>5} {'tie':>5} {'loss':>5} {'no verdict':>10}  win rate, a tie half",
    ]
    lines += [line(name or "no category", found) for name, found in pair["categories"].items()]
    if len(pair["turns"]) > 1:
        lines += [line(f"turn {turn}", found) for turn, found in pair["turns"].items()]
    return [*lines, line("all", pair)]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _span(interval: Sequence[float] | None, scale: float = 1, unit: str = "") -> str:
    return "" if interval is None else f" ({scale * interval[0]:.1f} to {scale * interval[1]:.1f}{unit})"


def plot(report: Metrics, title: str, target: Storage) -> None:
    """By category: wins, ties and losses of the first pair, and ratings of all models; beside them the ratings from games."""
    figure = matplotlib.figure.Figure(figsize=(15, 5), layout="constrained")
    outcomes, strengths, marks = figure.subplots(1, 3)
    if report["pairs"]:
        _plot_outcomes(outcomes, report["pairs"][0])
    models = list(report["ratings"])
    for shift, kind in ((-0.1, "bradley_terry"), (0.1, "elo")):
        found = [report["ratings"][m] for m in models]
        # A mean over orders may lie outside an interval over questions, by a hair.
        spread = [
            [max(0, f[kind] - f[f"{kind}_interval"][0]) for f in found],
            [max(0, f[f"{kind}_interval"][1] - f[kind]) for f in found],
        ]
        strengths.errorbar(
            [f[kind] for f in found],
            [i + shift for i in range(len(models))],
            xerr=spread,
            fmt="o",
            capsize=4,
            label=kind.replace("_", " "),
        )
    strengths.set(title="ratings, 95 % over questions", yticks=range(len(models)), yticklabels=models)
    if models:
        strengths.invert_yaxis()
        strengths.legend(**BELOW)
    _plot_marks(marks, report["single"])
    figure.suptitle(title)
    save_png(figure, target)


def _plot_outcomes(axes: matplotlib.axes.Axes, pair: Metrics) -> None:
    names = [*pair["categories"], "all"]
    found = [*pair["categories"].values(), pair]
    left = [0.0] * len(names)
    for outcome, color in (("win", "tab:green"), ("tie", "0.8"), ("loss", "tab:red"), ("without_verdict", "white")):
        totals = [max(1, f["win"] + f["tie"] + f["loss"] + f["without_verdict"]) for f in found]
        shares = [f[outcome] / total for f, total in zip(found, totals, strict=True)]
        axes.barh(names, shares, left=left, color=color, edgecolor="0.5", label=outcome.replace("_", " "))
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set(title=f"{pair['model']} against {pair['against']}", xlabel="share of comparisons")
    axes.invert_yaxis()
    axes.legend(**BELOW)


def _plot_marks(axes: matplotlib.axes.Axes, singles: Metrics) -> None:
    names = list(dict.fromkeys(name for found in singles.values() for name in found["categories"]))
    for i, (model, found) in enumerate(singles.items()):
        places = [
            n + 0.8 * (i + 0.5) / len(singles) - 0.4 for n, name in enumerate(names) if name in found["categories"]
        ]
        axes.barh(
            places,
            [found["categories"][name] for name in names if name in found["categories"]],
            height=0.7 / len(singles),
            label=model,
        )
    axes.set(title="rating of single answers", xlim=(0, 10), yticks=range(len(names)), yticklabels=names)
    if names:
        axes.invert_yaxis()
        axes.legend(**BELOW)
