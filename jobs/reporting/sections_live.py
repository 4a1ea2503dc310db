"""The report about production, for a terminal and for the pages. Knows no HTML and no Markdown."""

from collections.abc import Iterator, Mapping

from jobs.evaluation.live_metrics import LiveGroup, LiveMetrics
from jobs.reporting.blocks import Block, Gallery, Part, Tile, Tiles
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_live import live_plots
from jobs.reporting.tables import Cell, Table, as_text, between, shown

ABOUT = (
    "Answers that the endpoint gave and the predictor rated (live.store). Requested: what the prompt had of an "
    "attribute, set by the caller or else the default. Measured: the predictor's value. Gap: mean of "
    "|requested - measured|, in points of the scale. Intervals of 95 % take requests for independent; a team that asks "
    "the same again and again makes them too narrow. A predictor that errs shows here as a gap, too: the run's report "
    "says how far it can be trusted."
)
ABOUT_GROUPS = (
    "The same gap, by who asked, by day (UTC), and by the checkpoint that answered. Good: it stays. A gap that grows "
    "for all teams at once points to the policy or the predictor; one that grows for a single team, to its questions."
)
ABOUT_KINDS = (
    "How answers came to be recorded. Those that live.share has drawn are a fair sample of all requests. Those that "
    "were rated for their callers alone (score, best_of) are not: best_of, for one, gives the nearest of several "
    "answers. Compare the lines before you read the curves."
)


def live_lines(found: LiveMetrics) -> Iterator[str]:
    """The tables for a terminal."""
    yield f"{found.answers:,} answers from {found.first} to {found.last}"
    for table in (_curves(found), _groups("team", found.teams), _groups("day", found.days), _kinds(found)):
        yield from as_text(table)


def live_parts(found: LiveMetrics) -> list[Part]:
    plots = live_plots(found)
    curves: list[Block] = [Tiles(list(_tiles(found))), Gallery([as_svg(p) for p in plots[: len(found.curves)]])]
    groups: list[Block] = [Gallery([as_svg(p) for p in days])] if (days := plots[len(found.curves) :]) else []
    groups += [_groups("team", found.teams), _groups("day", found.days), _groups("checkpoint", found.checkpoints)]
    about = f"{ABOUT} {_bad(found)}".strip()
    return [
        Part("live", "Requested and measured in production", about, [*curves, _curves(found), _points(found)]),
        Part("groups", "Gap by team, day and checkpoint", ABOUT_GROUPS, groups),
        Part("kinds", "Where the answers come from", ABOUT_KINDS, [_kinds(found)]),
    ]


def _bad(found: LiveMetrics) -> str:
    """What was not read."""
    if not found.bad_lines:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.bad_reasons.items())
    return f"{found.bad_lines:,} lines are no records and were left out ({reasons}); the first: {found.first_bad}."


def _tiles(found: LiveMetrics) -> Iterator[Tile]:
    gaps = {name: curve.gap for name, curve in found.curves.items()}
    most = max(gaps, key=gaps.__getitem__)
    yield Tile("answers", shown(found.answers), f"{found.first[:10]} to {found.last[:10]}")
    yield Tile("mean gap", shown(sum(gaps.values()) / len(gaps)), "points, mean over the attributes")
    yield Tile("largest gap", shown(gaps[most]), f"points, of {most}")
    yield Tile("tokens of an answer", shown(found.completion_tokens), "mean")


def _curves(found: LiveMetrics) -> Table:
    rows: list[list[Cell]] = [
        [name, c.n, c.named, between(c.gap, *c.gap_interval), c.spearman, c.slope, c.monotonic]
        for name, c in found.curves.items()
    ]
    columns = ["attribute", "answers", "set by callers", "gap", "Spearman", "slope", "always rises"]
    return Table("Requested against measured values; gap with its 95 % interval", columns, rows)


def _points(found: LiveMetrics) -> Table:
    """The numbers of the curves."""
    rows: list[list[Cell]] = [
        [f"{name} at {value:g}", count, between(mean, low, high)]
        for name, c in found.curves.items()
        for value, count, mean, low, high in zip(c.requested, c.counts, c.measured, c.low, c.high, strict=True)
    ]
    title = "Mean measured at each requested value, with its 95 % interval"
    return Table(title, ["requested", "answers", "measured"], rows, folded=True)


def _groups(what: str, groups: Mapping[str, LiveGroup]) -> Table:
    names = sorted({name for group in groups.values() for name in group.gaps})
    rows: list[list[Cell]] = [
        [key, group.answers, *(group.gaps.get(name) for name in names)] for key, group in groups.items()
    ]
    return Table(f"Mean gap by {what}", [what, "answers", *names], rows)


def _kinds(found: LiveMetrics) -> Table:
    return _groups("kind", found.kinds)
