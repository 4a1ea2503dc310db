"""Every pass over the rows of a run, each by its own rate: how long it takes, and which one bounds the whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.planning.settings import AnnotationScale, ScalePlan
from jobs.planning.steps import annotation, duration

ROWS, CARDS = (10**6, 10**9), (10, 100, 1000)
"""The table's corners."""
MOST_SHARE = 0.05
"""A pass beside the annotation should take no more of its time."""
ANNOTATE = "annotate"


@dataclass(frozen=True)
class Outlook:
    """The passes of a run over `rows` rows on `cards` cards and the CPUs beside them."""

    rows: int
    cards: int
    seconds: dict[str, float]
    """By pass, in the order of a run. Some run beside the annotation: see `passes`."""

    @property
    def bound(self) -> str:
        """The pass that takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def above(self) -> list[str]:
        """The passes that take more than MOST_SHARE of the annotation's time."""
        most = MOST_SHARE * self.seconds[ANNOTATE]
        return [name for name, seconds in self.seconds.items() if name != ANNOTATE and seconds > most]

    def as_json(self) -> dict[str, object]:
        seconds = {name: round(s, 1) for name, s in self.seconds.items()}
        return {"rows": self.rows, "cards": self.cards, "seconds": seconds, "bound": self.bound, "above": self.above}


def outlooks(scale: ScalePlan) -> list[Outlook]:
    """For each number of rows and cards of the table, and for those of the settings if they are others."""
    wanted = [(rows, cards) for rows in ROWS for cards in CARDS]
    asked = (round(scale.annotate.conversations), scale.annotate.num_gpus)
    return [outlook(scale, *pair) for pair in dict.fromkeys([*wanted, asked])]


def outlook(scale: ScalePlan, rows: int, cards: int) -> Outlook:
    a = AnnotationScale(**{**dict(scale.annotate), "conversations": rows, "num_gpus": cards})
    return Outlook(rows, cards, dict(passes(scale.model_copy(update={"annotate": a}))))


def passes(scale: ScalePlan) -> Iterator[tuple[str, float]]:
    """Name and seconds of each pass, in the order of a run.

    Those that begin with "annotate, " run beside the annotation: one of them that takes longer makes the cards wait.
    """
    a, p, rates = scale.annotate, scale.prepare, scale.passes
    rows, cpus = a.conversations, a.num_gpus * scale.machines.cpus_beside
    yield "list sources", rows / p.rows_per_file / p.files_listed_per_s
    yield "prepare", rows / (p.rows_per_s_per_cpu * cpus)
    yield "duplicates", rows / (p.ids_per_s_per_cpu * cpus)
    yield ANNOTATE, next(seconds for name, _, seconds in annotation(scale) if name == "wall clock")
    yield "annotate, tokenizing", rows * a.tokens_each / (a.tokenize_per_cpu * cpus)
    yield "annotate, driver", rows / a.shard_rows / rates.pieces_per_s
    yield "annotate, merges", rows / (rates.merged_rows_per_s_per_cpu * cpus)
    yield "index", rows / a.rows_per_file / rates.footers_per_s
    yield "audit", rows / (rates.audited_rows_per_s_per_cpu * cpus)
    yield "training data, tokenizing", rows * a.tokens_each / (a.tokenize_per_cpu * cpus)
    yield "training data, reading", rows / rates.example_rows_per_s
    yield "report", rates.report_s


def table(found: Sequence[Outlook]) -> list[str]:
    """Lines for people: a column for each number of rows and cards, a row for each pass."""
    header = ["pass", *(f"{o.rows:.0e} rows, {o.cards:,} cards".replace("e+0", "e") for o in found)]
    cells = [[name, *(_cell(o, name) for o in found)] for name in found[0].seconds]
    cells.append(["bounds the whole", *(o.bound for o in found)])
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *cells]
    ]
    return [*lines, f"* = more than {MOST_SHARE:.0%} of the annotation's time"]


def _cell(found: Outlook, name: str) -> str:
    return duration(found.seconds[name]) + ("*" if name in found.above else " ")
