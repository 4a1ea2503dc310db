"""The report about the predictor, as tables for a terminal and as parts for the pages: labels, quality, pairs, a judge.

Made from the records of `data.quality_metrics`; a part whose stage did not run is left out. Knows no HTML and no
Markdown.
"""

from collections.abc import Iterator, Mapping

from data.attributes import AttributeSchema
from data.quality_metrics import (
    AttributeQuality,
    Collinearity,
    JudgedMetrics,
    PairAccuracy,
    PairMetrics,
    PredictorQuality,
    SectionAccuracy,
)
from data.run_layout import QUALITY, read_record
from data.stage_metrics import AnnotationMetrics
from jobs.pipelines.annotation import raters_of
from jobs.reporting.blocks import Block, Figure, Gallery, Part
from jobs.reporting.figures import as_svg
from jobs.reporting.figures_training import histogram, reliability
from jobs.reporting.rows import Spread, spreads
from jobs.reporting.tables import Cell, Table, as_text, between, shown
from jobs.runner.stage import Run


def predictor_parts(run: Run) -> Iterator[Part | None]:
    yield _annotation(run)
    quality = run.folder("predictor") / QUALITY
    yield _quality(run.schema, read_record(quality, PredictorQuality)) if quality.exists() else None


def _annotation(run: Run) -> Part | None:
    """People's values before, the predictor's after."""
    before = spreads(run.folder("rows") / "rows", "human", run.schema)
    after = spreads(run.folder("annotated") / "rows", "predicted", run.schema)
    if not after:
        return None
    raters = raters_of(run)
    figures: list[Figure] = []
    rows: list[list[Cell]] = []
    for attribute in run.schema.attributes:
        none = Spread((0,) * (attribute.high - attribute.low + 1), None)
        pair = before.get(attribute.name, none), after.get(attribute.name, none)
        figures.append(as_svg(histogram(attribute, pair[0].counts, pair[1].counts)))
        rated_by = raters.get(attribute.name, "predictor")
        for who, found in zip(("people", rated_by), pair, strict=True):
            rows.append([attribute.name, who, sum(found.counts), found.mean, " ".join(f"{n:,}" for n in found.counts)])
    about = (
        "People rate few answers; the predictor rates all of them, and the model learns from those labels. "
        "Good: the orange bars cover the whole scale as the blue ones do. "
        "An unsure predictor rates everything in the middle, and a model trained on that cannot reach the ends."
    )
    if run.preset.policy.calibrate:
        about += (
            " The plots show raw predictions; policy.calibrate stretches them to the spread of people's values before "
            "the policy learns from them."
        )
    columns = ["attribute", "rated by", "answers", "mean", "answers at each value"]
    table = Table("Answers at each value, low to high", columns, rows, folded=True)
    return Part("annotation", "Labels before and after annotation", about, [Gallery(figures), table, *_raters(run)])


def _raters(run: Run) -> Iterator[Table]:
    """How far raters beside the predictor agree with people, and what they failed."""
    annotated = run.metrics("annotated", AnnotationMetrics)
    if annotated is None or not annotated.agreement:
        return
    rows: list[list[Cell]] = [
        [name, who, found.given, found.num_failed, found.rated_by_people, found.pearson, found.mean_absolute_gap]
        for name in run.schema.names
        for who, of in annotated.agreement.items()
        if (found := of.get(name))
    ]
    columns = ["attribute", "rater", "rated", "failed", "by people too", "correlation", "mean gap"]
    yield Table("The raters beside people; the predictor may have learned from these ratings", columns, rows)
    if annotated.fits:
        fitted: list[list[Cell]] = [
            [name, fit.rater, fit.kind, fit.n, fit.held_out, fit.error_before, fit.error_after]
            for name, fit in annotated.fits.items()
        ]
        columns = ["attribute", "rater", "calibrate", "fitted on", "tried on", "error before", "error after"]
        yield Table(
            "Raters brought onto people's scale: mean error on answers that were not fitted on", columns, fitted
        )
    if annotated.judges:
        took = [[who, j.prompt_tokens, j.completion_tokens, j.cost] for who, j in annotated.judges.items()]
        yield Table("What judges have taken so far", ["judge", "prompt tokens", "reply tokens", "cost"], took)


def _quality(schema: AttributeSchema, quality: PredictorQuality) -> Part:
    """The predictor on answers it never saw."""
    attributes = quality.attributes
    about = (
        f"Measured on {quality.answers['held_out']:,} rated answers it never saw. "
        "Good: its error is well below that of the constant mean, its Spearman well above that of the text's length, "
        "and the marks lie on the dashed line: a predicted value then means what people say."
    )
    drawable = {name: row for name, row in attributes.items() if row.reliability and name in schema.names}
    figures = [as_svg(plot) for plot in reliability(schema, drawable)]
    blocks: list[Block] = [Gallery(figures)] if figures else []
    return Part("predictor", "Quality of the predictor", about, [*blocks, *_errors(attributes)])


# --- tables for the terminal, some of them on the page, too -----------------------------------------------------------


def quality_lines(quality: PredictorQuality) -> Iterator[str]:
    """The tables of `quality.json`: errors beside baselines, the truth where it is known, reliability, collinearity."""
    counts = quality.answers
    yield f"predictor, on {counts['held_out']:,} rated answers it never saw ({counts['unscored']:,} of them unscored)"
    for table in _errors(quality.attributes):
        yield from as_text(table)
    yield from as_text(_reliability(quality.attributes))
    yield from as_text(_collinearity(quality.collinearity, counts["rated"]))


def _errors(attributes: Mapping[str, AttributeQuality]) -> Iterator[Table]:
    """Against people, and against the truth where it is known."""
    rows: list[list[Cell]] = []
    truths: list[list[Cell]] = []
    for name, row in attributes.items():
        # Raw scores are the calibrated ones where calibration changes nothing.
        three = row, row.calibrated or row, row.baselines.mean
        errors = [*(found.mae for found in three), *(found.rmse for found in three)]
        length = row.baselines.length
        rows.append([name, row.n, *errors, row.pearson, row.spearman, length.spearman, length.lead])
        if row.truth:
            ours, rater = row.truth.predictor, row.truth.one_rater
            pairs = [ours.mae, rater.mae, ours.rmse, rater.rmse, ours.spearman, rater.spearman]
            truths.append([name, ours.n, *pairs])
    kinds = "calibrated", "of the mean"
    columns = ["attribute", "answers", "MAE", *kinds, "RMSE", *kinds, "Pearson", "Spearman", "of the length", "lead"]
    yield Table("Against people; errors in points of the scale", columns, rows)
    if truths:
        words = [word for key in ("MAE", "RMSE", "Spearman") for word in (key, "of one rater")]
        title = "Against the truth, on the same answers, beside the single rater it learned from"
        yield Table(title, ["attribute", "answers", *words], truths)


def _reliability(attributes: Mapping[str, AttributeQuality]) -> Table:
    width = max((len(row.reliability) for row in attributes.values()), default=0)
    rows = []
    for name, row in attributes.items():
        cells = [f"{b.predicted:.2f}->{b.human:.2f}" for b in row.reliability]
        sizes = sorted(b.n for b in row.reliability)
        rows.append([name, f"{sizes[0]}-{sizes[-1]}" if sizes else "0", *cells, *[""] * (width - len(cells))])
    title = "Calibration: the mean human value by decile of the predicted value (predicted -> human)"
    return Table(title, ["attribute", "n each", *(str(i + 1) for i in range(width))], rows)


def _collinearity(found: Collinearity, num_rated: int) -> Table:
    rows = [
        [name, *(f"{shown(r, unknown='-')} ({n})" for r, n in zip(values, counts, strict=True))]
        for name, values, counts in zip(found.names, found.spearman, found.n, strict=True)
    ]
    title = f"Collinearity of people's values, Spearman (answers with both), of {num_rated:,} rated answers"
    return Table(title, ["", *found.names], rows)


def pair_lines(metrics: Mapping[str, PairMetrics]) -> Iterator[str]:
    """One line a set of pairs, at least one: how often the preferred answer scores higher, with the 95 % interval."""
    title = "pairs: share in which the answer that people preferred scores higher, ties half (95 % interval)"
    rows: list[list[Cell]] = []
    for name, row in metrics.items():
        broken = sum(row.rejected.values())
        rows.append([name, row.predictor.n, _accuracy(row.predictor), _accuracy(row.length), row.unscored, broken])
    yield from as_text(Table(title, ["set", "n", "predictor", "longer answer", "unscored", "broken"], rows))
    for name, row in metrics.items():
        parts: list[list[Cell]] = [[f"  {part}", found.n, _accuracy(found)] for part, found in row.subsets.items()]
        parts += [[part, None, _accuracy(found)] for part, found in row.sections.items()]
        if parts:
            yield from as_text(Table("", [name, "n", "predictor"], parts))
    weights = next(iter(metrics.values())).weights
    yield "  score of an answer: " + " ".join(f"{weight:+.2f} {name}" for name, weight in weights.items() if weight)


def _accuracy(found: PairAccuracy | SectionAccuracy) -> str | None:
    return between(found.accuracy, found.low, found.high, 3)


def judge_lines(metrics: Mapping[str, JudgedMetrics]) -> Iterator[str]:
    """One block a set of judged answers: correlations of score, attributes and length, with 95 % intervals."""
    for name, row in metrics.items():
        who = {"score": row.score, **row.each_attribute, "length": row.length}
        rows = [
            [
                label,
                between(found.spearman, found.spearman_low, found.spearman_high, 3),
                between(found.pearson, found.pearson_low, found.pearson_high, 3),
            ]
            for label, found in who.items()
        ]
        title = (
            f"{name}: agreement with the judge on {row.score.n:,} answers ({row.unscored:,} unscored), 95 % intervals"
        )
        yield from as_text(Table(title, ["", "Spearman", "Pearson"], rows))
