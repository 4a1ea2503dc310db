"""The report about steering, for the terminal and the pages: curves, cross-talk, dialogue, judge, length, answers.

Made from the metrics of `report.json` and from the answers; a part without metrics is left out. Knows no HTML and no
Markdown.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation
from jobs.reporting.blocks import Block, Gallery, Part, Quotes, Tile, Tiles, finite
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_steering import steering
from jobs.reporting.tables import Cell, Table, as_text, shown
from jobs.runner.stage import Metrics

FOLLOWS, PARTLY = 0.8, 0.3
"""Spearman from which an attribute follows the request: as well as one human rater of the synthetic world agrees with
the truth. Below PARTLY it hardly moves."""
ANSWER_CHARACTERS = 1500
"""The page cuts longer answers."""


def report_lines(report: Metrics) -> Iterator[str]:
    """The tables of `report` for a terminal."""
    yield f"steering, measured {report['measured_by']}"
    tables = [_curves(report["steering"]), _at_best(report)]
    for table in [*tables, *(make(report[name]) for name, make in TABLES.items() if report.get(name))]:
        yield from as_text(table)
    if report.get("judge_note"):
        yield report["judge_note"]


def steering_parts(schema: AttributeSchema, report: Metrics) -> Iterator[Part]:
    """The parts of `report.json` that have metrics, in the order of a reader's questions."""
    yield _headline(schema, report)
    if table := report["steering"]:
        figures = [as_svg(steering(schema[name], row)) for name, row in table.items()]
        yield Part(
            "steering", "Requested and measured", ABOUT_CURVES, [Gallery(figures), _curves(table), _bands(table)]
        )
    for name, (title, about) in ABOUT.items():
        if metrics := report.get(name):
            text = f"{about} {_note(name, metrics, report)}".strip()
            yield Part(name.replace("_", "-"), title, text, [TABLES[name](metrics)])


def follows(row: Metrics) -> str:
    """Does the attribute follow the request: yes, partly or no."""
    correlation = finite(row.get("spearman"))
    if correlation is None or correlation < PARTLY:
        return "no"
    return "yes" if correlation >= FOLLOWS else "partly"


# --- headline ---------------------------------------------------------------------------------------------------------


def _headline(schema: AttributeSchema, report: Metrics) -> Part:
    table = report["steering"]
    about = (
        "This run trained a language model whose answers can be steered: each request states how much of each "
        "attribute the answer should have. Answers were measured "
        f"{report.get('measured_by') or 'in an unknown way'}. An attribute follows the request if its Spearman is at "
        f"least {FOLLOWS:g}; below {PARTLY:g} it hardly moves."
    )
    rows = [[name, *_extent(table[name])] for name in schema.names if name in table]
    title = "Each attribute varied over its scale: lowest and highest mean, and the mean absolute gap of the others"
    overview = Table(title, ["attribute", "Spearman", "follows", "lowest", "highest", "others move"], rows)
    meanings = [[a.name, f"{a.low} to {a.high}", a.meaning] for a in schema.attributes]
    blocks: list[Block] = [Tiles(list(_tiles(report))), overview]
    if report.get("at_best_settings") or report.get("requested_best"):
        blocks.append(_at_best(report))
    blocks.append(Table("The attributes", ["attribute", "scale", "meaning"], meanings))
    return Part("headline", "Does steering work?", about, blocks)


def _extent(row: Metrics) -> list[Cell]:
    measured = [v for v in map(finite, row["measured"]) if v is not None]
    low, high = row.get("reached") or (min(measured, default=None), max(measured, default=None))
    gap = finite(row.get("mean_absolute_gap"))
    return [finite(row.get("spearman")), follows(row), finite(low), finite(high), gap]


def _tiles(report: Metrics) -> Iterator[Tile]:
    table = report["steering"]
    number = sum(follows(row) == "yes" for row in table.values())
    yield Tile("attributes that follow", f"{number} of {len(table)}", f"Spearman at least {FOLLOWS:g}")
    if table:
        found = {name: finite(row.get("spearman")) or 0.0 for name, row in table.items()}
        least = min(found, key=found.__getitem__)
        note = f"1 is perfect order, 0 is none; least: {least}, {shown(found[least])}"
        yield Tile("mean Spearman", shown(sum(found.values()) / len(found)), note)
    judge = [v for v in (finite(row.get("spearman")) for row in (report.get("judge") or {}).values()) if v is not None]
    if judge:
        note = f"mean Spearman of predicted and exact values; least {shown(min(judge))}"
        yield Tile("predictor against truth", shown(sum(judge) / len(judge)), note)
    best, requested = report.get("at_best_settings") or {}, report.get("requested_best") or {}
    gaps = [abs(best[name] - value) for name, value in requested.items() if finite(best.get(name)) is not None]
    if gaps:
        note = "points between requested and measured, mean over attributes, all requested at their best"
        yield Tile("gap at best settings", shown(sum(gaps) / len(gaps)), note)


def _at_best(report: Metrics) -> Table:
    best, requested = report.get("at_best_settings") or {}, report.get("requested_best") or {}
    rows = [[name, requested.get(name), finite(best.get(name))] for name in requested | best]
    return Table("All attributes at their best at once", ["attribute", "requested", "measured"], rows)


# --- tables, each for the terminal and the page -----------------------------------------------------------------------


def _curves(table: Metrics) -> Table:
    requested = sorted({value for row in table.values() for value in row["requested"]})
    rows: list[list[Cell]] = []
    for name, row in table.items():
        means = dict(zip(row["requested"], map(finite, row["measured"]), strict=True))
        bands = [(finite(low), finite(high)) for low, high in zip(row.get("low", []), row.get("high", []), strict=True)]
        widths = [high - low for low, high in bands if low is not None and high is not None]
        rows.append(
            [name, row.get("n"), *(means.get(value) for value in requested), max(widths) / 2 if widths else None]
        )
        rows[-1] += [finite(row.get("spearman")), finite(row.get("slope")), row.get("monotonic")]
        rows[-1].append(finite(row.get("mean_absolute_gap")))
    columns = ["attribute", "answers", *(f"at {v:g}" for v in requested), "+/-", "Spearman", "slope", "always rises"]
    title = (
        "Mean measured at each requested value; +/-: half the widest 95 % band; others move: their mean absolute gap"
    )
    return Table(title, [*columns, "others move"], rows)


def _bands(table: Metrics) -> Table:
    rows: list[list[Cell]] = []
    for name, row in table.items():
        unknown = [None] * len(row["measured"])
        columns = row["requested"], row["measured"], row.get("low") or unknown, row.get("high") or unknown
        rows += [[name, f"{value:g}", *map(finite, found)] for value, *found in zip(*columns, strict=True)]
    title = "Mean measured at each requested value, with its 95 % band"
    return Table(title, ["attribute", "requested", "measured", "band from", "to"], rows, folded=True)


def _cross_talk(metrics: Metrics) -> Table:
    measured = metrics["measured"]
    slopes = {
        name: [finite(v) for v in line] for name, line in zip(metrics["attributes"], metrics["slope"], strict=True)
    }
    tints = [
        [min(1.0, abs(v or 0.0)) * (1 if other == name else -1) for other, v in zip(measured, line, strict=True)]
        for name, line in slopes.items()
    ]
    title = "Cross-talk: points by which an attribute (column) moves per point requested of another (row)"
    return Table(title, ["requested", *measured], [[name, *line] for name, line in slopes.items()], tints=tints)


def _combined(settings: list[Metrics]) -> Table:
    names = list(dict.fromkeys(name for setting in settings for name in setting["requested"]))
    rows: list[list[Cell]] = []
    for number, setting in enumerate(settings, start=1):
        requested, measured = setting["requested"], setting["measured"]
        pairs = [
            f"{requested[name]:g} → {shown(finite(measured.get(name)))}" if name in requested else None
            for name in names
        ]
        rows.append([f"setting {number}", *pairs, finite(setting.get("mean_absolute_gap")), setting.get("n")])
    title = "Several attributes at once: requested → measured mean; gap: mean distance of a single answer's value"
    return Table(title, ["", *names, "gap", "answers"], rows)


def _dialogue(metrics: Metrics) -> Table:
    rows: list[list[Cell]] = []
    for name, row in metrics.items():
        for first, second, measured in zip(row["first"], row["second"], row["measured_second"], strict=True):
            rows.append([name, f"{first:g}", f"{second:g}", finite(measured), row.get("n")])
    columns = ["attribute", "first requested", "second requested", "second measured", "conversations"]
    return Table("Changed in mid-conversation: the second answer's mean", columns, rows)


def _judge(judge: Metrics) -> Table:
    columns = ["attribute", "answers", "Spearman", "MAE", "slope"]
    rows = [
        [name, row.get("n"), *(finite(row.get(k)) for k in ("spearman", "mae", "slope"))] for name, row in judge.items()
    ]
    if any("everywhere" in row for row in judge.values()):
        columns += ["all answers: Spearman", "of a perfect judge"]
        for cells, row in zip(rows, judge.values(), strict=True):
            cells += [finite(row.get("everywhere", {}).get(key)) for key in ("spearman", "ceiling")]
    return Table("The predictor as judge, against the exact truth, where the attribute was varied", columns, rows)


def _length(length: Metrics) -> Table:
    keys = "spearman_words", "partial_spearman"
    rows = [[name, *(finite(row.get(key)) for key in keys)] for name, row in length.items()]
    title = "Spearman of an answer's words with the measured value"
    return Table(title, ["attribute", "all answers", "given the same request"], rows)


TABLES: Mapping[str, Callable[..., Table]] = {
    "cross_talk": _cross_talk,
    "combined": _combined,
    "dialogue": _dialogue,
    "judge": _judge,
    "length": _length,
}
"""Part of `report.json` -> its table."""

# --- what the parts explain -------------------------------------------------------------------------------------------

ABOUT_CURVES = (
    "Each attribute was varied over its whole scale, with the same questions at every value. Good: the line follows "
    "the dashed one. Flat: the request has no effect. The mean lies within the band with 95 % certainty; few "
    "answers make it wide."
)
ABOUT = {
    "cross_talk": (
        "Cross-talk between attributes",
        "Does a request for one attribute move another? Good: 1 where an attribute meets its own request, 0 "
        "everywhere else. A strong color off the diagonal means that a request for the one also moves the other.",
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
        "Is the predictor right? In the synthetic world the truth can be read from the text. So the predictor, "
        "which judges everything else, is judged itself, on the answers of this report. Good: Spearman and slope "
        "near 1, the mean absolute error (MAE) near 0.",
    ),
    "length": (
        "The influence of length",
        "Does a higher measured value only come from more words? The first column is the correlation of an answer's "
        "length with the measured value; the second is the rest of it among answers to the same request. Good: the "
        "second is near 0, unless the attribute means length.",
    ),
}
"""Part of `report.json` -> its heading, and what it shows."""


def _note(name: str, metrics: Any, report: Metrics) -> str:
    """What this run adds to the explanation."""
    if name == "combined":
        gaps = [v for v in (finite(s.get("mean_absolute_gap")) for s in metrics) if v is not None]
        return f"Here it is {shown(sum(gaps) / len(gaps))} over all settings." if gaps else ""
    if name == "judge":
        note = report.get("judge_note") or ""
        if any("everywhere" in row for row in metrics.values()):
            note += " Over all answers nearly all have the same true value, and no judge can order those: "
            note += "there, compare with a perfect judge."
        return note.strip()
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
        "The same question at each requested value of one attribute, the others held. The attribute should grow "
        "from answer to answer, and the rest stay. These are the first questions of the report, not chosen ones."
    )
    return Part("answers", "Answers by requested value", about, blocks) if blocks else None


def _label(name: str, row: Conversation, measured: Values) -> str:
    return f"{name} requested {row.requested[-1][name]:g}, measured {shown(finite(measured.get(name)))}"


def _clipped(text: str, most: int = ANSWER_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
