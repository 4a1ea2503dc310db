"""The report about guidance: what each strength gains and costs, as a table. Knows no HTML and no Markdown."""

from collections.abc import Callable, Mapping, Sequence

from data.steering_metrics import GuidanceMetrics
from jobs.reporting.tables import Cell, Table

TITLE = "Guidance"
ABOUT_GUIDANCE = (
    "Guidance leads an answer beyond the request (sampling.guidance, or `guidance` in a request to the endpoint). "
    "Each column has the same questions and seeds, with every attribute varied alone. Slope: points measured per point "
    "requested, 1 is exact. Gap: mean distance of requested and measured, in points. Others move: mean absolute gap of "
    "the other attributes. Distinct-2: share of different pairs of words. At best: the leading attribute with all "
    "attributes requested at their best. Tokens/s: of one actor, by the clock and by its CPU time. "
    "Good: a steeper slope and a smaller gap, while distinct-2 and the values at best stay."
)


def guidance_table(found: Sequence[GuidanceMetrics]) -> Table:
    """A column for each strength."""
    names = list(dict.fromkeys(name for strength in found for name in strength.slopes))
    rows: list[list[Cell]] = [
        [f"slope of {name}", *(strength.slopes.get(name) for strength in found)] for name in names
    ]
    rows += [[title, *(value(strength) for strength in found)] for title, value in LINES.items()]
    return Table("What guidance gains and costs", ["guidance", *(f"{strength.guidance:g}" for strength in found)], rows)


LINES: Mapping[str, Callable[[GuidanceMetrics], Cell]] = {
    "mean slope": lambda strength: strength.slope,
    "mean Spearman": lambda strength: strength.spearman,
    "gap": lambda strength: strength.gap,
    "others move": lambda strength: strength.others_move,
    "distinct-2, in %": lambda strength: 100 * strength.distinct_2,
    "words": lambda strength: strength.words,
    "at best, by the predictor": lambda strength: strength.quality,
    "at best, as the report measures": lambda strength: strength.at_best,
    "tokens/s": lambda strength: strength.tokens_per_s,
    "tokens/CPU s": lambda strength: strength.tokens_per_cpu_s,
    "cut off": lambda strength: strength.cut_off,
}
"""Line of the table -> its value."""
