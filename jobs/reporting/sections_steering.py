"""The report about steering, as tables for a terminal and as parts for the pages.

Made from the metrics of `report.json` and from the answers; a part without metrics is left out. Knows no HTML and no
Markdown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation
from data.steering_metrics import (
    CombinedSetting,
    CrossTalk,
    DialogueCurve,
    JudgeMetrics,
    LengthMetrics,
    ReportMetrics,
    SteeringCurve,
)
from jobs.reporting.blocks import Block, Gallery, Part, Quotes, Tile, Tiles, finite
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_steering import steering
from jobs.reporting.sections_guidance import ABOUT_GUIDANCE, TITLE, guidance_table
from jobs.reporting.sections_movement import movement_table
from jobs.reporting.tables import Cell, Table, as_text, shown

FOLLOWS, PARTLY = 0.8, 0.3
"""Spearman from which an attribute follows the request; one rater of the synthetic world agrees with the truth as well.
Below PARTLY an attribute hardly moves."""
ANSWER_CHARACTERS = 1500
"""The page cuts longer answers."""


def report_lines(report: ReportMetrics) -> Iterator[str]:
    """The tables of `report` for a terminal."""
    yield f"steering, measured {report.measured_by}"
    tables = [_curves(report.steering), _at_best(report)]
    for table in [*tables, *(make(found) for name, make in TABLES.items() if (found := getattr(report, name)))]:
        yield from as_text(table)
    if moved := movement_table(report.steering, report.witnesses):
        yield from as_text(moved)
    if report.judge_note:
        yield report.judge_note


def steering_parts(schema: AttributeSchema, report: ReportMetrics) -> Iterator[Part]:
    """The parts of `report.json` that have metrics, in the order of a reader's questions."""
    yield _headline(schema, report)
    if curves := report.steering:
        figures = Gallery([as_svg(steering(schema[name], curve)) for name, curve in curves.items()])
        blocks: list[Block] = [figures, _curves(curves), _bands(curves)]
        if moved := movement_table(curves, report.witnesses):
            blocks.append(moved)
        yield Part("steering", "Requested and measured", ABOUT_CURVES, blocks)
    for name, (title, about) in ABOUT.items():
        if metrics := getattr(report, name):
            text = f"{about} {_note(name, report)}".strip()
            yield Part(name.replace("_", "-"), title, text, [TABLES[name](metrics)])


def follows(curve: SteeringCurve) -> str:
    """Does the attribute follow the request: yes, partly or no."""
    if curve.spearman is None or curve.spearman < PARTLY:
        return "no"
    return "yes" if curve.spearman >= FOLLOWS else "partly"


# --- headline ---------------------------------------------------------------------------------------------------------


def _headline(schema: AttributeSchema, report: ReportMetrics) -> Part:
    about = (
        "This run trained a language model whose answers can be steered: each request states how much of each "
        f"attribute the answer should have. Answers were measured {report.measured_by}. "
        f"An attribute follows the request if its Spearman is at least {FOLLOWS:g}; below {PARTLY:g} it hardly moves."
    )
    rows = [[name, *_extent(report.steering[name])] for name in schema.names if name in report.steering]
    title = "Each attribute varied over its scale: lowest and highest mean, and how far the other attributes move"
    overview = Table(title, ["attribute", "Spearman", "follows", "lowest", "highest", "others move"], rows)
    rated = bool(report.raters)
    meanings: list[list[Cell]] = [
        [a.name, f"{a.low} to {a.high}", *([report.raters.get(a.name)] if rated else []), a.meaning]
        for a in schema.attributes
    ]
    blocks: list[Block] = [Tiles(list(_tiles(report))), overview]
    if report.at_best_settings or report.requested_best:
        blocks.append(_at_best(report))
    columns = ["attribute", "scale", *(["labels by"] if rated else []), "meaning"]
    blocks.append(Table("The attributes", columns, meanings))
    return Part("headline", "Does steering work?", about, blocks)


def _extent(curve: SteeringCurve) -> list[Cell]:
    low, high = curve.reached or (None, None)
    return [curve.spearman, follows(curve), low, high, curve.mean_absolute_gap]


def _tiles(report: ReportMetrics) -> Iterator[Tile]:
    curves = report.steering
    number = sum(follows(curve) == "yes" for curve in curves.values())
    yield Tile("attributes that follow", f"{number} of {len(curves)}", f"Spearman at least {FOLLOWS:g}")
    if curves:
        found = {name: curve.spearman or 0.0 for name, curve in curves.items()}
        least = min(found, key=found.__getitem__)
        note = f"1 is perfect order, 0 is none; least: {least}, {shown(found[least])}"
        yield Tile("mean Spearman", shown(sum(found.values()) / len(found)), note)
    judge = [row.spearman for row in report.judge.values() if row.spearman is not None]
    if judge:
        note = f"mean Spearman of predicted and exact values; least {shown(min(judge))}"
        yield Tile("predictor against truth", shown(sum(judge) / len(judge)), note)
    best = report.at_best_settings
    gaps = [abs(best[name] - value) for name, value in report.requested_best.items() if name in best]
    if gaps:
        note = "points between requested and measured, mean over attributes, all requested at their best"
        yield Tile("gap at best settings", shown(sum(gaps) / len(gaps)), note)


def _at_best(report: ReportMetrics) -> Table:
    requested, best = report.requested_best, report.at_best_settings
    rows = [[name, requested.get(name), best.get(name)] for name in requested | best]
    return Table("All attributes at their best at once", ["attribute", "requested", "measured"], rows)


# --- tables, each for the terminal and the page -----------------------------------------------------------------------


def _curves(curves: Mapping[str, SteeringCurve]) -> Table:
    requested = sorted({value for curve in curves.values() for value in curve.requested})
    rows: list[list[Cell]] = []
    for name, curve in curves.items():
        means = dict(zip(curve.requested, curve.measured, strict=True))
        bands = zip(curve.low, curve.high, strict=True)
        widths = [high - low for low, high in bands if low is not None and high is not None]
        half = max(widths) / 2 if widths else None
        order: list[Cell] = [curve.spearman, curve.slope, curve.monotonic, curve.mean_absolute_gap]
        rows.append([name, curve.n, *(means.get(value) for value in requested), half, *order])
    columns = ["attribute", "answers", *(f"at {v:g}" for v in requested), "+/-", "Spearman", "slope", "always rises"]
    title = (
        "Mean measured at each requested value; +/-: half the widest 95 % band; others move: their mean absolute gap"
    )
    return Table(title, [*columns, "others move"], rows)


def _bands(curves: Mapping[str, SteeringCurve]) -> Table:
    rows: list[list[Cell]] = []
    for name, curve in curves.items():
        unknown = (None,) * len(curve.measured)
        columns = curve.requested, curve.measured, curve.low or unknown, curve.high or unknown
        rows += [[name, f"{value:g}", *found] for value, *found in zip(*columns, strict=True)]
    title = "Mean measured at each requested value, with its 95 % band"
    return Table(title, ["attribute", "requested", "measured", "band from", "to"], rows, folded=True)


def _cross_talk(found: CrossTalk) -> Table:
    rows = [[name, *line] for name, line in zip(found.attributes, found.slope, strict=True)]
    tints = [
        [min(1.0, abs(v or 0.0)) * (1 if other == name else -1) for other, v in zip(found.measured, line, strict=True)]
        for name, line in zip(found.attributes, found.slope, strict=True)
    ]
    title = "Cross-talk: points by which an attribute (column) moves per point requested of another (row)"
    return Table(title, ["requested", *found.measured], rows, tints=tints)


def _combined(settings: Sequence[CombinedSetting]) -> Table:
    names = list(dict.fromkeys(name for setting in settings for name in setting.requested))
    rows: list[list[Cell]] = []
    for number, s in enumerate(settings, start=1):
        pairs = [f"{s.requested[n]:g} → {shown(s.measured.get(n))}" if n in s.requested else None for n in names]
        rows.append([f"setting {number}", *pairs, s.mean_absolute_gap, s.n])
    title = "Several attributes at once: requested → measured mean; gap: mean distance of a single answer's value"
    return Table(title, ["", *names, "gap", "answers"], rows)


def _dialogue(found: Mapping[str, DialogueCurve]) -> Table:
    rows: list[list[Cell]] = []
    for name, curve in found.items():
        for first, second, measured in zip(curve.first, curve.second, curve.measured_second, strict=True):
            rows.append([name, f"{first:g}", f"{second:g}", measured, curve.n])
    columns = ["attribute", "first requested", "second requested", "second measured", "conversations"]
    return Table("Changed in mid-conversation: the second answer's mean", columns, rows)


def _judge(judge: Mapping[str, JudgeMetrics]) -> Table:
    rows = [
        [name, row.n, row.spearman, row.mae, row.slope, row.everywhere.spearman, row.everywhere.ceiling]
        for name, row in judge.items()
    ]
    columns = ["attribute", "answers", "Spearman", "MAE", "slope", "all answers: Spearman", "of a perfect judge"]
    return Table("The predictor as judge, against the exact truth, where the attribute was varied", columns, rows)


def _length(length: Mapping[str, LengthMetrics]) -> Table:
    rows = [[name, row.spearman_words, row.partial_spearman] for name, row in length.items()]
    title = "Spearman of an answer's words with the measured value"
    return Table(title, ["attribute", "all answers", "given the same request"], rows)


TABLES: Mapping[str, Callable[..., Table]] = {
    "cross_talk": _cross_talk,
    "combined": _combined,
    "dialogue": _dialogue,
    "judge": _judge,
    "length": _length,
    "guidance": guidance_table,
}
"""Part of `report.json` -> its table."""

# --- what the parts explain -------------------------------------------------------------------------------------------

ABOUT_CURVES = (
    "Each attribute was varied over its whole scale, with the same questions at every value. "
    "Good: the line follows the dashed one. Flat: the request has no effect. "
    "The mean lies within the band with 95 % certainty; few answers make it wide."
)
ABOUT = {
    "cross_talk": (
        "Cross-talk between attributes",
        "Does a request for one attribute move another? Good: 1 where an attribute meets its own request, 0 everywhere "
        "else. A strong color off the diagonal means that a request for the one also moves the other.",
    ),
    "combined": (
        "Several attributes at once",
        "Several attributes requested at once, and not only at their best: requested → measured mean. "
        "Good: the gap, the mean distance of the two in points of the scale, is near 0.",
    ),
    "dialogue": (
        "An attribute changed in mid-conversation",
        "The first answer was requested at one value, the second at another. "
        "Good: the second answer has its own requested value, whatever the first answer was like.",
    ),
    "judge": (
        "The predictor as judge",
        "Is the predictor right? In the synthetic world the truth can be read from the text. So the predictor, which "
        "judges everything else, is judged itself, on the answers of this report. "
        "Good: Spearman and slope near 1, the mean absolute error (MAE) near 0.",
    ),
    "length": (
        "The influence of length",
        "Does a higher measured value only come from more words? The first column is the correlation of an answer's "
        "length with the measured value; the second is the rest of it among answers to the same request. "
        "Good: the second is near 0, unless the attribute means length.",
    ),
    "guidance": (TITLE, ABOUT_GUIDANCE),
}
"""Part of `report.json` -> its heading, and what it shows."""


def _note(name: str, report: ReportMetrics) -> str:
    """What this run adds to the explanation."""
    if name == "combined":
        gaps = [setting.mean_absolute_gap for setting in report.combined if setting.mean_absolute_gap is not None]
        return f"Here it is {shown(sum(gaps) / len(gaps))} over all settings." if gaps else ""
    if name == "judge":
        return (
            f"{report.judge_note} Over all answers nearly all have the same true value, and no judge can order those: "
            "there, compare with a perfect judge."
        )
    return ""


# --- answers ----------------------------------------------------------------------------------------------------------


def answers_part(
    found: Mapping[str, Mapping[str, list[Conversation]]], measure: Callable[[Conversation], Values]
) -> Part | None:
    """The same question at each requested value of an attribute, folded."""
    blocks: list[Block] = []
    for name, questions in found.items():
        for question, rows in questions.items():
            answers = [(_label(name, row, measure(row)), _clipped(row.messages[-1].content)) for row in rows]
            blocks.append(Quotes(f"{name}: {_clipped(question, 160)}", answers, open=not blocks))
    about = (
        "The same question at each requested value of one attribute, the others held. The attribute should grow from "
        "answer to answer, and the rest stay. These are the first questions of the report, not chosen ones."
    )
    return Part("answers", "Answers by requested value", about, blocks) if blocks else None


def _label(name: str, row: Conversation, measured: Values) -> str:
    return f"{name} requested {row.requested[-1][name]:g}, measured {shown(finite(measured.get(name)))}"


def _clipped(text: str, most: int = ANSWER_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
