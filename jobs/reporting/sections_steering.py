"""The report's parts about what the dials do: headline, curves, cross-talk, combined settings, dialogue, judge, length, answers.

Made from the figures of `report.json` and from the answers; a part whose figures are not there is left out. Knows no HTML and no Markdown.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation
from jobs.reporting.blocks import Block, Cell, Gallery, Part, Said, Table, Tile, Tiles, finite, shown
from jobs.reporting.svg_figures import steering
from jobs.runner.stage import Metrics

TURNS, PARTLY = 0.8, 0.3
"""Spearman from which a dial turns: as well as one human rater of the laboratory agrees with the truth. And below which it hardly does anything."""
ANSWER_CHARACTERS = 1500
"""More of an answer is cut off on the page."""


def steering_parts(schema: AttributeSchema, report: Metrics) -> Iterator[Part]:
    """What `report.json` says, in the order in which one asks."""
    yield _headline(schema, report)
    if report["steering"]:
        yield _curves(schema, report)
    makers: Mapping[str, Callable[[Any], Part]] = {
        "cross_talk": _cross_talk,
        "combined": _combined,
        "dialogue": _dialogue,
        "judge": lambda judge: _judge(judge, report.get("judge_note") or ""),
        "length": _length,
    }
    for name, make in makers.items():
        if report.get(name):
            yield make(report[name])


def does_it_turn(row: Metrics) -> str:
    """What a dial does, in a word."""
    correlation = finite(row.get("spearman"))
    if correlation is None or correlation < PARTLY:
        return "no"
    return "yes" if correlation >= TURNS else "partly"


def _headline(schema: AttributeSchema, report: Metrics) -> Part:
    table = report["steering"]
    turning = [name for name, row in table.items() if does_it_turn(row) == "yes"]
    correlations = {name: finite(row.get("spearman")) or 0.0 for name, row in table.items()}
    tiles = [
        Tile("dials that turn", f"{len(turning)} of {len(table)}", f"Spearman of asked and measured at least {TURNS:g}")
    ]
    if correlations:
        worst = min(correlations, key=correlations.__getitem__)
        mean = sum(correlations.values()) / len(correlations)
        tiles.append(
            Tile(
                "mean Spearman",
                shown(mean),
                f"1 is perfect order, 0 is none; least: {worst}, {shown(correlations[worst])}",
            )
        )
    judge = [v for v in (finite(row.get("spearman")) for row in (report.get("judge") or {}).values()) if v is not None]
    if judge:
        tiles.append(
            Tile(
                "judge against truth",
                shown(sum(judge) / len(judge)),
                f"mean Spearman of predicted and exact values; least {shown(min(judge))}",
            )
        )
    best, wanted = report.get("at_best_settings") or {}, report.get("requested_best") or {}
    off = [abs(best[name] - asked) for name, asked in wanted.items() if finite(best.get(name)) is not None]
    if off:
        tiles.append(
            Tile(
                "off at best settings",
                shown(sum(off) / len(off)),
                "points between asked and measured, mean over attributes, all dials at best",
            )
        )
    attributes: list[list[Cell]] = [
        [a.name, wanted.get(a.name), finite(best.get(a.name)), f"{a.low} to {a.high}", a.meaning]
        for a in schema.attributes
    ]
    says = (
        "This run trained a language model whose answers are steered by dials: each request says how much of each attribute its answer should have. "
        f"Answers were measured {report.get('measured_by') or 'in an unknown way'}. "
        f"A dial turns if answers that were asked for more have more: Spearman from {TURNS:g} on is good, below {PARTLY:g} the dial does next to nothing."
    )
    caption = "All dials at best at once: asked, and what came out"
    blocks: list[Block] = [
        Tiles(tiles),
        _dials(schema, table),
        Table(caption, ["attribute", "asked", "measured", "scale", "what it is"], attributes),
    ]
    return Part("headline", "Do the dials turn?", says, blocks)


def _dials(schema: AttributeSchema, table: Metrics) -> Table:
    rows: list[list[Cell]] = []
    for name in (name for name in schema.names if name in table):
        row = table[name]
        measured = [v for v in map(finite, row["measured"]) if v is not None]
        low, high = row.get("reached") or (min(measured, default=None), max(measured, default=None))
        rows.append(
            [
                name,
                finite(row.get("spearman")),
                does_it_turn(row),
                finite(low),
                finite(high),
                finite(row.get("mean_absolute_gap")),
            ]
        )
    return Table(
        "Each dial turned over its scale: its lowest and highest mean, and by how many points it moves the other attributes, on average",
        ["dial", "Spearman", "turns", "lowest", "highest", "moves others"],
        rows,
    )


def _curves(schema: AttributeSchema, report: Metrics) -> Part:
    table = report["steering"]
    rows: list[list[Cell]] = []
    for name, row in table.items():
        bands = zip(
            row.get("low") or [None] * len(row["measured"]),
            row.get("high") or [None] * len(row["measured"]),
            strict=True,
        )
        for asked, measured, (low, high) in zip(row["requested"], row["measured"], bands, strict=True):
            rows.append([name, f"{asked:g}", finite(measured), finite(low), finite(high)])
    facts: list[list[Cell]] = [
        [name, row.get("n"), finite(row.get("spearman")), finite(row.get("slope")), row.get("monotonic")]
        for name, row in table.items()
    ]
    blocks: list[Block] = [
        Gallery([steering(schema[name], row) for name, row in table.items()]),
        Table(
            "Each dial over all its answers",
            ["dial", "answers", "Spearman", "points per point asked", "always rises"],
            facts,
        ),
        Table(
            "Mean measured at each value asked, with its 95 % band",
            ["dial", "asked", "measured", "band from", "to"],
            rows,
            folded=True,
        ),
    ]
    says = (
        "Each dial was turned over its whole scale, the same questions asked at every value. Good: the line follows the dashed one. "
        "Flat: the dial does nothing. The band is where the mean lies with 95 % certainty, given so few answers."
    )
    return Part("steering", "Asked against measured", says, blocks)


def _cross_talk(metrics: Metrics) -> Part:
    measured = metrics["measured"]
    rows: list[list[Cell]] = []
    tints: list[list[float]] = []
    for name, slopes in zip(metrics["attributes"], metrics["slope"], strict=True):
        values = [finite(v) for v in slopes]
        rows.append([name, *values])
        tints.append(
            [min(1.0, abs(v or 0.0)) * (1 if other == name else -1) for other, v in zip(measured, values, strict=True)]
        )
    caption = "Points by which an attribute (column) moves for each point asked of a dial (row)"
    says = (
        "Does one dial move what it should leave alone? Good: 1 where a dial meets its own attribute, 0 everywhere else. "
        "A strong colour off the diagonal means that turning the one also turns the other."
    )
    return Part(
        "cross-talk",
        "Cross-talk between the dials",
        says,
        [Table(caption, ["dial turned", *measured], rows, tints=tints)],
    )


def _combined(settings: list[Metrics]) -> Part:
    names = list(dict.fromkeys(name for setting in settings for name in setting["requested"]))
    rows: list[list[Cell]] = []
    for number, setting in enumerate(settings, start=1):
        pairs = [
            f"{setting['requested'][name]:g} → {shown(finite(setting['measured'].get(name)))}"
            if name in setting["requested"]
            else None
            for name in names
        ]
        rows.append([f"setting {number}", *pairs, finite(setting.get("off")), setting.get("n")])
    offs = [v for v in (finite(s.get("off")) for s in settings) if v is not None]
    mean = f" Here it is {shown(sum(offs) / len(offs))} over all settings." if offs else ""
    says = (
        "Several dials set at once, and not only at their best: asked → measured mean. "
        f"Good: “off by”, the mean distance of the two in points of the scale, is near 0.{mean}"
    )
    return Part(
        "combined", "Several dials at once", says, [Table("Combined settings", ["", *names, "off by", "answers"], rows)]
    )


def _dialogue(dials: Metrics) -> Part:
    rows: list[list[Cell]] = []
    for name, row in dials.items():
        for first, second, measured in zip(row["first"], row["second"], row["measured_second"], strict=True):
            rows.append([name, f"{first:g}", f"{second:g}", finite(measured), row.get("n")])
    says = (
        "A dial that is changed in mid-conversation: the first answer was asked for at one value, the second at another. "
        "Good: the second answer has what was asked of it, whatever the first one was like."
    )
    table = Table(
        "What the second answer has", ["dial", "first asked", "second asked", "second measured", "conversations"], rows
    )
    return Part("dialogue", "A dial changed in mid-conversation", says, [table])


def _judge(judge: Metrics, note: str) -> Part:
    header = ["attribute", "answers", "Spearman", "mean error, points", "slope"]
    rows = [
        [name, row.get("n"), *(finite(row.get(key)) for key in ("spearman", "mae", "slope"))]
        for name, row in judge.items()
    ]
    if any("everywhere" in row for row in judge.values()):
        header += ["all answers: Spearman", "of a perfect judge"]
        rows = [
            [*cells, *(finite(judge[str(cells[0])].get("everywhere", {}).get(key)) for key in ("spearman", "ceiling"))]
            for cells in rows
        ]
        note += " Over all answers nearly all have the same true value, which nobody can put in order: there, compare with what a perfect judge would get."
    says = (
        "Is the judge right? In the laboratory the truth can be read from the text, so that the predictor, which judges everything else, can be judged itself, "
        f"on the answers of this report. Good: Spearman and slope near 1, the mean error near 0. {note}"
    ).strip()
    table = Table("The predictor against the exact truth", header, rows)
    return Part("judge", "The judge's calibration", says, [table])


def _length(length: Metrics) -> Part:
    rows = [
        [name, finite(row.get("spearman_words")), finite(row.get("partial_spearman"))] for name, row in length.items()
    ]
    says = (
        "Is more measured only because more is written? The first figure is the correlation of an answer's length with what was measured; "
        "the second is what is left of it among answers that were asked for the same. "
        "Good: the second is near 0, but for an attribute that is length by its meaning."
    )
    table = Table(
        "Spearman of words and measured value", ["attribute", "of length", "of length, given what was asked"], rows
    )
    return Part("length", "Is it only length?", says, [table])


def answers_part(
    found: Mapping[str, Mapping[str, list[Conversation]]], measure: Callable[[Conversation], Values]
) -> Part | None:
    """The same question at each value of a dial, folded."""
    blocks: list[Block] = []
    for name, questions in found.items():
        for question, rows in questions.items():
            answers = [(_label(name, row, measure(row)), _clipped(row.messages[-1].content)) for row in rows]
            blocks.append(Said(f"{name}: {_clipped(question, 160)}", answers, open=not blocks))
    says = (
        "The same question at each value of one dial, the others held. Read down: the attribute should grow from answer to answer, and the rest stay. "
        "These are the first questions of the report, not chosen ones."
    )
    return Part("answers", "Answers across a dial", says, blocks) if blocks else None


def _label(name: str, row: Conversation, measured: Values) -> str:
    return f"{name} asked {row.requested[-1][name]:g}, measured {shown(finite(measured.get(name)))}"


def _clipped(text: str, most: int = ANSWER_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
