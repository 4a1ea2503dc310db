"""The report about the predictor, for the terminal and the pages: labels, quality, pairs, agreement with a judge.

Made from the metrics of `jobs.evaluation`'s predictor files; a part whose stage did not run is left out. Knows no
HTML and no Markdown.
"""

from collections.abc import Iterator, Mapping

from data.attributes import AttributeSchema
from jobs.reporting.blocks import Block, Figure, Gallery, Part, finite
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_training import histogram, reliability
from jobs.reporting.rows import Spread, spreads
from jobs.reporting.tables import Cell, Table, as_text, between, shown
from jobs.runner.stage import Metrics, Run


def predictor_parts(run: Run) -> Iterator[Part | None]:
    yield _annotation(run)
    quality = run.folder("predictor") / "quality.json"
    yield _quality(run.schema, quality.read_json()) if quality.exists() else None


def _annotation(run: Run) -> Part | None:
    """People's values before, the predictor's after."""
    before = spreads(run.folder("rows") / "rows", "human", run.schema)
    after = spreads(run.folder("annotated") / "rows", "predicted", run.schema)
    if not after:
        return None
    figures: list[Figure] = []
    rows: list[list[Cell]] = []
    for attribute in run.schema.attributes:
        none = Spread((0,) * (attribute.high - attribute.low + 1), None)
        pair = before.get(attribute.name, none), after.get(attribute.name, none)
        figures.append(as_svg(histogram(attribute, pair[0].counts, pair[1].counts)))
        for who, found in zip(("people", "predictor"), pair, strict=True):
            rows.append([attribute.name, who, sum(found.counts), found.mean, " ".join(f"{n:,}" for n in found.counts)])
    about = (
        "People rate few answers; the predictor rates all of them, and the model learns from those labels. "
        "Good: the orange bars cover the whole scale as the blue ones do. "
        "An unsure predictor rates everything in the middle, and a model trained on that cannot reach the ends."
    )
    if run.preset.policy.calibrate:
        about += " The plots show raw predictions; policy.calibrate stretches them to the spread of people's values."
    columns = ["attribute", "rated by", "answers", "mean", "answers at each value"]
    table = Table("Answers at each value, low to high", columns, rows, folded=True)
    return Part("annotation", "Labels before and after annotation", about, [Gallery(figures), table])


def _quality(schema: AttributeSchema, quality: Metrics) -> Part:
    """What the predictor is worth on answers it never saw."""
    attributes = quality["attributes"]
    about = (
        f"Measured on {quality.get('answers', {}).get('held_out', 0):,} rated answers it never saw. Good: its error "
        "is well below that of the constant mean, its Spearman well above that of the text's length, and the marks "
        "lie on the dashed line: a predicted value then means what people say."
    )
    drawable = {name: row for name, row in attributes.items() if row.get("reliability") and name in schema.names}
    figures = [as_svg(plot) for plot in reliability(schema, {"attributes": drawable})]
    blocks: list[Block] = [Gallery(figures)] if figures else []
    return Part("predictor", "Quality of the predictor", about, [*blocks, *_errors(attributes)])


# --- tables for the terminal, some of them on the page, too -----------------------------------------------------------


def quality_lines(metrics: Metrics) -> Iterator[str]:
    """The tables of `quality.json`: errors beside baselines, the truth where it is known, reliability, collinearity."""
    counts = metrics["answers"]
    yield f"predictor, on {counts['held_out']:,} rated answers it never saw ({counts['unscored']:,} of them unscored)"
    for table in _errors(metrics["attributes"]):
        yield from as_text(table)
    yield from as_text(_reliability(metrics["attributes"]))
    yield from as_text(_collinearity(metrics["collinearity"], counts["rated"]))


def _errors(attributes: Metrics) -> Iterator[Table]:
    """Against people, and against the truth where it is known."""
    rows: list[list[Cell]] = []
    truths: list[list[Cell]] = []
    for name, row in attributes.items():
        baselines = row.get("baselines", {})
        # Raw scores are the calibrated ones where calibration changes nothing.
        three = row, row.get("calibrated", row), baselines.get("mean", {})
        errors = [finite(found.get(key)) for key in ("mae", "rmse") for found in three]
        correlations = row.get("pearson"), row.get("spearman"), baselines.get("length", {}).get("spearman")
        rows.append([name, row["n"], *errors, *map(finite, correlations)])
        truth = row.get("truth", {"predictor": {"n": 0}, "one_rater": {"n": 0}})
        pairs = [truth[who].get(key) for key in ("mae", "rmse", "spearman") for who in ("predictor", "one_rater")]
        truths.append([name, truth["predictor"]["n"], *map(finite, pairs)])
    kinds = "calibrated", "of the mean"
    columns = ["attribute", "answers", "MAE", *kinds, "RMSE", *kinds, "Pearson", "Spearman", "of the length"]
    yield Table("Against people; errors in points of the scale", columns, rows)
    if any("truth" in row for row in attributes.values()):
        columns = [
            "attribute",
            "answers",
            *(word for key in ("MAE", "RMSE", "Spearman") for word in (key, "of one rater")),
        ]
        yield Table("Against the truth, on the same answers, beside the single rater it learned from", columns, truths)


def _reliability(attributes: Metrics) -> Table:
    bins = {name: row["reliability"] for name, row in attributes.items()}
    width = max(map(len, bins.values()), default=0)
    rows = []
    for name, found in bins.items():
        cells = [f"{b['predicted']:.2f}->{b['human']:.2f}" for b in found]
        sizes = sorted(b["n"] for b in found)
        rows.append([name, f"{sizes[0]}-{sizes[-1]}" if sizes else "0", *cells, *[""] * (width - len(cells))])
    title = "Calibration: the mean human value by decile of the predicted value (predicted -> human)"
    return Table(title, ["attribute", "n each", *(str(i + 1) for i in range(width))], rows)


def _collinearity(metrics: Metrics, num_rated: int) -> Table:
    lines = zip(metrics["names"], metrics["spearman"], metrics["n"], strict=True)
    rows = [
        [name, *(f"{shown(r, unknown='-')} ({n})" for r, n in zip(values, counts, strict=True))]
        for name, values, counts in lines
    ]
    title = f"Collinearity of people's values, Spearman (answers with both), of {num_rated:,} rated answers"
    return Table(title, ["", *metrics["names"]], rows)


def pair_lines(metrics: Mapping[str, Metrics]) -> Iterator[str]:
    """One line a set of pairs, at least one: how often the preferred answer scores higher, with the 95 % interval."""
    title = "pairs: share in which the answer that people preferred scores higher, ties half (95 % interval)"
    rows: list[list[Cell]] = []
    for name, row in metrics.items():
        accuracies = _accuracy(row["predictor"]), _accuracy(row["length"])
        rows.append([name, row["predictor"]["n"], *accuracies, row["unscored"], sum(row["rejected"].values())])
    yield from as_text(Table(title, ["set", "n", "predictor", "longer answer", "unscored", "broken"], rows))
    for name, row in metrics.items():
        parts = {f"  {part}": found for part, found in row.get("subsets", {}).items()} | row.get("sections", {})
        if parts:
            lines = [[part, found.get("n"), _accuracy(found)] for part, found in parts.items()]
            yield from as_text(Table("", [name, "n", "predictor"], lines))
    weights = next(iter(metrics.values()))["weights"]
    yield "  score of an answer: " + " ".join(f"{weight:+.2f} {name}" for name, weight in weights.items() if weight)


def _accuracy(row: Metrics) -> str | None:
    return between(row.get("accuracy"), row.get("low"), row.get("high"), 3)


def judge_lines(metrics: Mapping[str, Metrics]) -> Iterator[str]:
    """One block a set of judged answers: correlations of the score, of each attribute and of the length, with 95 %
    intervals."""
    for name, row in metrics.items():
        counts = f"{row['score']['n']:,} answers ({row['unscored']:,} unscored)"
        who = {"score": row["score"], **row["each_attribute"], "length": row["length"]}
        kinds = "spearman", "pearson"
        rows = [
            [label, *(between(found[kind], found[f"{kind}_low"], found[f"{kind}_high"], 3) for kind in kinds)]
            for label, found in who.items()
        ]
        title = f"{name}: agreement with the judge on {counts}, 95 % intervals"
        yield from as_text(Table(title, ["", "Spearman", "Pearson"], rows))
