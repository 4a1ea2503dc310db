"""How far answers move from the lowest to the highest request, as one table for terminal and pages. Knows no run."""

from collections.abc import Mapping

from data.movement import Movement
from data.steering_metrics import SteeringCurve, WitnessMetrics
from jobs.reporting.tables import Cell, Table, between, shown

TITLE = (
    "From the lowest to the highest request, with 95 % intervals; moved by: in standard deviations of the same measure "
    "among the answers that the policy learned from"
)
MEASURED = "measured"


def movement_table(steering: Mapping[str, SteeringCurve], witnesses: Mapping[str, WitnessMetrics]) -> Table | None:
    """A line for each attribute, and one for each witness that stands for it; None where nothing has two ends."""
    rows = []
    for name, curve in steering.items():
        if curve.movement:
            rows.append(_row(name, MEASURED, curve.movement))
        for kind, witness in witnesses.items():
            heard = witness.curves.get(name)
            if witness.attribute == name and heard and heard.movement:
                rows.append(_row(name, kind, heard.movement))
    columns = ["attribute", "by", "questions", "means", "moved by", "ratio"]
    return Table(TITLE, columns, rows) if rows else None


def _row(name: str, by: str, found: Movement) -> list[Cell]:
    means = " → ".join(shown(value) for value in found.measured)
    moved = between(found.moved, found.low, found.high)
    return [name, by, found.questions, means, moved, between(found.ratio, found.ratio_low, found.ratio_high)]
