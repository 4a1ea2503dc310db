"""The report about outside witnesses, for a terminal and for the pages. Knows no HTML and no Markdown."""

from collections.abc import Iterator

from data.steering_metrics import ReportMetrics, SteeringCurve, WitnessCurve
from jobs.reporting.blocks import Block, Gallery, Part
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_witnesses import witness_plots
from jobs.reporting.tables import Cell, Table, as_text, between, shown

ABOUT = (
    "Does something move that the predictor has never seen? The predictor rated the rows that the policy learned from, "
    "so a policy may learn to please it. A witness is a measure of the text by another maker. Good: it rises with the "
    "request, for the attribute that it stands for, and its interval does not hold 0. Numbers of different units "
    "cannot be compared; their Spearman can."
)


def witness_lines(report: ReportMetrics) -> Iterator[str]:
    """The tables for a terminal, and who was absent."""
    if report.witnesses:
        yield from as_text(_beside(report))
        yield from as_text(_matrix(report))
    for name, why in report.absent_witnesses.items():
        yield f"witness {name} is absent: {why}"


def witnesses_part(report: ReportMetrics) -> Part | None:
    """None without a witness, present or absent."""
    blocks: list[Block] = []
    if report.witnesses:
        if plots := witness_plots(report):
            blocks.append(Gallery([as_svg(plot) for plot in plots]))
        blocks += [_beside(report), _matrix(report), _meanings(report)]
    absent = " ".join(f"Absent: {name} ({why})." for name, why in report.absent_witnesses.items())
    return Part("witnesses", "Outside witnesses", f"{ABOUT} {absent}".strip(), blocks) if blocks or absent else None


def _beside(report: ReportMetrics) -> Table:
    """Each witness of an attribute beside the measure that the report is made from."""
    rows: list[list[Cell]] = []
    for name, witness in report.witnesses.items():
        heard, curve = witness.curves.get(witness.attribute or ""), report.steering.get(witness.attribute or "")
        if heard is None or curve is None:
            continue
        points = ", ".join(f"{r:g} → {shown(m)}" for r, m in zip(heard.requested, heard.measured, strict=True))
        rater = "its labels are this measure" if witness.is_rater else None
        rows.append([witness.attribute, name, heard.n, _order(heard), _order(curve), points, rater])
    columns = ["attribute", "witness", "answers", "Spearman of the witness", "of the measured values"]
    title = "Spearman of requested and witnessed values, with its 95 % interval, beside that of the measured ones"
    return Table(title, [*columns, "requested → witness's mean", "note"], rows)


def _order(curve: WitnessCurve | SteeringCurve) -> str | None:
    return between(curve.spearman, curve.spearman_low, curve.spearman_high)


def _matrix(report: ReportMetrics) -> Table:
    """Every witness over every attribute that was varied."""
    names = list(dict.fromkeys(name for witness in report.witnesses.values() for name in witness.curves))
    rows: list[list[Cell]] = []
    tints: list[list[float]] = []
    for kind, witness in report.witnesses.items():
        found = [witness.curves[name].spearman if name in witness.curves else None for name in names]
        rows.append([kind, *found])
        signs = [1 if name == witness.attribute else -1 for name in names]
        tints.append([abs(value or 0.0) * sign for value, sign in zip(found, signs, strict=True)])
    title = "Spearman of each witness (row) with each attribute that was requested (column)"
    return Table(title, ["witness", *names], rows, tints=tints)


def _meanings(report: ReportMetrics) -> Table:
    rows: list[list[Cell]] = [[name, w.meaning, w.unit, w.attribute] for name, w in report.witnesses.items()]
    return Table("The witnesses", ["witness", "meaning", "unit", "stands for"], rows, folded=True)
