"""The report as aligned text: the figures of `jobs.evaluation.steering_metrics` in lines for a terminal. Computes none of its own."""

from collections.abc import Iterator, Mapping

from jobs.reporting.predictor_tables import Cell, aligned
from jobs.runner.stage import Metrics


def report_lines(report: Metrics) -> Iterator[str]:
    """Every part that `report` has; numbers that are unknown are "-"."""
    yield f"steering, measured {report['measured_by']}: means at each value asked for, and half the widest 95 % band"
    yield from _curves(report["steering"])
    yield "all dials at best: " + "  ".join(f"{name} {value:.2f}" for name, value in report["at_best_settings"].items())
    yield "cross-talk: points that an attribute moves per point asked of a dial"
    yield from _cross_talk(report["cross_talk"])
    if report.get("combined"):
        yield "several dials at once: asked -> mean measured; off: mean distance of a single answer's value"
        yield from _combined(report["combined"])
    if report.get("dialogue"):
        yield "turned in mid-conversation: mean of the second answer, asked for the other end than the first"
        yield from _dialogue(report["dialogue"])
    if "judge" in report:
        yield "the predictor as judge, against the exact truth: where the dial was turned | over all answers (ceiling: a perfect judge's Spearman there)"
        yield from _judge(report["judge"])
        yield report["judge_note"]
    yield "length: Spearman of an answer's words with what was measured"
    rows = [[name, row["spearman_words"], row["partial_spearman"]] for name, row in report["length"].items()]
    yield from aligned(["attribute", "all answers", "same request"], rows)


def _curves(table: Metrics) -> list[str]:
    asked = sorted({value for row in table.values() for value in row["requested"]})
    rows: list[list[Cell]] = []
    for name, row in table.items():
        means = dict(zip(row["requested"], row["measured"], strict=True))
        widths = [
            high - low
            for low, high in zip(row["low"], row["high"], strict=True)
            if low is not None and high is not None
        ]
        reached = "-".join(f"{limit:.2f}" for limit in row["reached"])
        metrics = [
            max(widths) / 2 if widths else None,
            row["spearman"],
            row["slope"],
            reached,
            "yes" if row["monotonic"] else "NO",
            row["mean_absolute_gap"],
        ]
        rows.append([name, *(means.get(value) for value in asked), *metrics])
    return aligned(
        ["asked", *(f"{value:g}" for value in asked), "+/-", "Spearman", "slope", "reached", "monotonic", "off target"],
        rows,
    )


def _cross_talk(metrics: Metrics) -> list[str]:
    return aligned(
        ["turned", *metrics["measured"]],
        [[name, *slopes] for name, slopes in zip(metrics["attributes"], metrics["slope"], strict=True)],
    )


def _combined(settings: list[Metrics]) -> list[str]:
    names = list(settings[0]["measured"])
    rows = [
        [str(number), *(_arrow(s, name) for name in names), s["off"], s["n"]] for number, s in enumerate(settings, 1)
    ]
    return aligned(["", *names, "off", "n"], rows)


def _arrow(setting: Mapping[str, Metrics], name: str) -> str:
    asked = setting["requested"].get(name)
    return f"{'' if asked is None else f'{asked:g} '}-> {setting['measured'][name]:.2f}"


def _dialogue(metrics: Metrics) -> list[str]:
    rows = []
    for name, row in metrics.items():
        turns = [f"{before:g}, then {after:g}" for before, after in zip(row["first"], row["second"], strict=True)]
        rows.append(
            [name, *(cell for pair in zip(turns, row["measured_second"], strict=True) for cell in pair), row["n"]]
        )
    return aligned(["dial", "asked", "second", "asked", "second", "n"], rows)


def _judge(metrics: Metrics) -> list[str]:
    rows = [
        [
            name,
            *(part[key] for part in (row, row["everywhere"]) for key in ("n", "spearman", "mae", "slope")),
            row["everywhere"]["ceiling"],
        ]
        for name, row in metrics.items()
    ]
    return aligned(["attribute", *("n", "Spearman", "MAE", "slope") * 2, "ceiling"], rows)
