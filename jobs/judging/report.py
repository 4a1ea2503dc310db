"""The metrics of a judge's verdicts, as tables and as a plot. Knows no endpoint."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

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
from data.printable import printable
from data.storage import Storage
from data.verdicts import Verdict
from jobs.reporting.figures import FIRST, LINE, SECOND, Plot, save_png
from jobs.reporting.tables import Cell, Table, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUTCOMES = ("win", "tie", "loss", "without_verdict")
STRENGTHS = {"bradley_terry": "Bradley-Terry", "elo": "Elo"}


def metrics_of(
    verdicts: Sequence[Verdict], models: Sequence[str], reference: str, resamples: int, seed: int
) -> Metrics:
    """`models` in the order of the report: each pair is seen from the side of the one named first."""
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


def report_lines(report: Metrics) -> Iterator[str]:
    """The report for a terminal."""
    for pair in report["pairs"]:
        yield from as_text(_outcomes(pair))
    if position := report["position"]:
        changed, reversed_, first = (_share(position[key]) for key in ("changed", "reversed", "first_place"))
        yield (
            f"position: of {position['comparisons']} comparisons with both verdicts {changed} changed with the order, "
            f"{reversed_} reversed; first place won {first}{_span(position['first_place_interval'], 100, ' %')} "
            f"of {position['decided']} decided"
        )
    for table in (_strengths(report["ratings"]), _single(report["single"]), _percent_of(report)):
        if table.rows:
            yield from as_text(table)
    for kind, found in report["counts"].items():
        errors = "".join(f", {n} x {reason}" for reason, n in found["errors"].items())
        yield f"{kind}: {found['verdicts']} verdicts of {found['judged']}; {found['unparsable']} unparsable{errors}"


def _outcomes(pair: Metrics) -> Table:
    found = {name or "no category": counts for name, counts in pair["categories"].items()}
    if len(pair["turns"]) > 1:
        found |= {f"turn {turn}": counts for turn, counts in pair["turns"].items()}
    rows: list[list[Cell]] = []
    for name, counts in (found | {"all": pair}).items():
        rate = None if counts["win_rate"] is None else f"{_share(counts['win_rate'])}{_span(counts['interval'], 100)}"
        rows.append([name, *(counts[outcome] for outcome in OUTCOMES), rate])
    columns = [f"{pair['model']} against {pair['against']}", "win", "tie", "loss", "no verdict", "win rate, a tie half"]
    return Table("", columns, rows)


def _strengths(ratings: Metrics) -> Table:
    rows: list[list[Cell]] = []
    for model, found in ratings.items():
        rates = [f"{found[kind]:.1f}{_span(found[f'{kind}_interval'])}" for kind in STRENGTHS]
        rows.append([model, *rates, found["games"]])
    return Table("", ["ratings", *STRENGTHS.values(), "games"], rows)


def _single(singles: Metrics) -> Table:
    turns = list(dict.fromkeys(turn for found in singles.values() for turn in found["turns"]))
    rows: list[list[Cell]] = []
    for model, found in singles.items():
        mean = None if found["mean"] is None else f"{found['mean']:.2f}{_span(found['interval'])}"
        rows.append([model, mean, *(found["turns"].get(turn) for turn in turns), found["n"]])
    return Table("", ["single answers", "rating of 10", *(f"turn {turn}" for turn in turns), "answers"], rows)


def _percent_of(report: Metrics) -> Table:
    found = {model: row for model, row in report["percent_of_reference"].items() if row["percent"] is not None}
    names = list(dict.fromkeys(name for row in found.values() for name in row["categories"]))
    rows = [
        [model, f"{row['percent']:.1f} % of {report['reference_model']}{_span(row['interval'])}"]
        + [row["categories"].get(name) for name in names]
        + [row["n"]]
        for model, row in found.items()
    ]
    return Table("", ["percent of the reference", "all", *(name or "no category" for name in names), "answers"], rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _span(interval: Sequence[float] | None, scale: float = 1, unit: str = "") -> str:
    return "" if interval is None else f" ({scale * interval[0]:.1f} to {scale * interval[1]:.1f}{unit})"


def draw_report(report: Metrics, title: str, target: Storage) -> None:
    """A PNG: outcomes of the first pair by category, ratings from games, and ratings of single answers."""
    plots = [_outcomes_plot(pair) for pair in report["pairs"][:1]]
    plots += [_strengths_plot(report["ratings"])] if report["ratings"] else []
    plots += [_single_plot(report["single"])] if report["single"] else []
    save_png(plots, target, title)


def _plot(title: str, draw: Callable[["Axes"], None]) -> Plot:
    """Models or categories from top to bottom, a legend below."""

    def whole(axes: "Axes") -> None:
        draw(axes)
        axes.set(title=title)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)

    return Plot(title, title, whole, (5, 5))


def _outcomes_plot(pair: Metrics) -> Plot:
    found = {name or "no category": counts for name, counts in pair["categories"].items()} | {"all": pair}

    def draw(axes: "Axes") -> None:
        left = [0.0] * len(found)
        totals = [max(1, sum(counts[outcome] for outcome in OUTCOMES)) for counts in found.values()]
        for outcome, color in zip(OUTCOMES, (FIRST, LINE, SECOND, "white"), strict=True):
            shares = [counts[outcome] / total for counts, total in zip(found.values(), totals, strict=True)]
            axes.barh(
                range(len(found)), shares, left=left, color=color, edgecolor="0.5", label=outcome.replace("_", " ")
            )
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set(xlabel="share of comparisons", yticks=range(len(found)), yticklabels=list(map(printable, found)))

    return _plot(f"{printable(pair['model'])} against {printable(pair['against'])}", draw)


def _strengths_plot(ratings: Metrics) -> Plot:
    def draw(axes: "Axes") -> None:
        for shift, color, (kind, label) in zip((-0.1, 0.1), (FIRST, SECOND), STRENGTHS.items(), strict=True):
            means = [found[kind] for found in ratings.values()]
            ends = [found[f"{kind}_interval"] for found in ratings.values()]
            # A mean over orders may lie outside an interval over questions, by a hair.
            spread = [[max(0, m - low) for m, (low, _) in zip(means, ends, strict=True)]]
            spread += [[max(0, high - m) for m, (_, high) in zip(means, ends, strict=True)]]
            places = [place + shift for place in range(len(ratings))]
            axes.errorbar(means, places, xerr=spread, fmt="o", capsize=4, color=color, label=label)
        axes.set(yticks=range(len(ratings)), yticklabels=list(map(printable, ratings)))

    return _plot("ratings, 95 % over questions", draw)


def _single_plot(singles: Metrics) -> Plot:
    names = list(dict.fromkeys(name for found in singles.values() for name in found["categories"]))

    def draw(axes: "Axes") -> None:
        for i, (model, found) in enumerate(singles.items()):
            shift = 0.8 * (i + 0.5) / len(singles) - 0.4
            places = [n + shift for n, name in enumerate(names) if name in found["categories"]]
            means = [found["categories"][name] for name in names if name in found["categories"]]
            axes.barh(places, means, height=0.7 / len(singles), label=printable(model))
        labels = [printable(name or "no category") for name in names]
        axes.set(xlim=(0, 10), yticks=range(len(names)), yticklabels=labels)

    return _plot("rating of single answers", draw)
