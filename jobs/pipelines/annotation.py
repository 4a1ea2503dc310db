"""Rating rows with the run's predictor: the workers' arguments and counters, and how raw values become labels.

Shared by every stage that rates answers or trains on predicted values.
"""

from collections.abc import Mapping

from data.calibration import Calibration
from data.label_spread import label_spread, text_rater
from data.run_layout import TEXT_RATER, read_record, write_record
from data.stage_metrics import AnnotationMetrics, AuditMetrics, PredictorMetrics
from data.storage import Storage
from data.text_rater import TextRater
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import Pass, map_rows
from jobs.runner.settings import AnnotateSettings
from jobs.runner.stage import Run

COUNTS = ("answers", "rated_answers", "answers_cut_off", "truncated", "over_long_unrated", "tokens")


def annotate(run: Run, what: str, sources: list[Storage], target: Storage, fingerprint: str = "") -> AnnotationMetrics:
    """Rate all rows of `sources` into `target` (with a `fingerprint`: those that are not rated yet)."""
    done = score_with(run, what, sources, rating(run), target, fingerprint)
    found = summary(done, run.schema.names, audit(what, sources, target, fingerprint))
    return found.model_copy(update={"raters": raters} if (raters := raters_of(run)) else {})


def rating(run: Run) -> dict[str, object]:
    """The arguments of an Annotator that rates as stage annotated does: with the predictor, and by the texts."""
    manifest = run.manifest("predictor")
    assert manifest is not None, "the predictor must be finished"
    return annotator(run, run.folder("predictor"), manifest.fingerprint) | {"text_rater": read_text_rater(run)}


def write_text_rater(run: Run, folder: Storage) -> None:
    """Scale the measures of `annotate.measures` over the answers of stage rows, into the `folder` of stage annotated.

    The same rows give the same scale. Raises UserError if they are too few to rank.
    """
    settings = run.preset.annotate
    if settings.measures:
        rater = text_rater(run.folder("rows") / "rows", run.schema, settings.measures, settings.cuts)
        write_record(folder / TEXT_RATER, rater)


def read_text_rater(run: Run) -> TextRater:
    """Of stage annotated; one that rates nothing if the predictor gives all attributes."""
    if not run.preset.annotate.measures:
        return TextRater()
    return read_record(run.folder("annotated") / TEXT_RATER, TextRater)


def raters_of(run: Run) -> dict[str, str]:
    """Attribute -> who gives its values; empty if the predictor gives all."""
    measures = run.preset.annotate.measures
    return TextRater(measures=measures).raters(run.schema.names) if measures else {}


def scoring_settings(settings: AnnotateSettings) -> dict[str, object]:
    """What the predictor's scores depend on, as stages describe it."""
    return {"pool": None, **{name: getattr(settings, name) for name in ("pack_tokens", "max_tokens", "over_long")}}


def score_rows(
    run: Run,
    what: str,
    sources: list[Storage],
    predictor: Storage,
    target: Storage,
) -> Pass:
    """All rows of `sources` into `target`, with the scores of the predictor in the folder `predictor` alone."""
    return score_with(run, what, sources, annotator(run, predictor), target)


def score_with(
    run: Run, what: str, sources: list[Storage], arguments: Mapping[str, object], target: Storage, fingerprint: str = ""
) -> Pass:
    """All rows of `sources` through a pool of Annotators with `arguments`, into `target`."""
    from actors.scoring.annotator import Annotator  # with torch: the tasks of a stage import its module as well

    return map_rows(what, sources, Annotator, arguments, run.preset.annotate.pool, target, fingerprint, "annotate.pool")


def summary(done: Pass, names: tuple[str, ...], audited: AuditMetrics) -> AnnotationMetrics:
    """The metrics of a pass of annotation, from the workers' counters."""
    counters = done.counters
    rated = max(1, counters["rated_answers"])
    return AnnotationMetrics(
        **dict(done.metrics),
        counts={name: int(counters[name]) for name in COUNTS},
        predicted_mean={name: round(counters[f"sum/{name}"] / rated, 4) for name in names},
        pack_fill=round(counters["filled_tokens"] / max(1, counters["budget_tokens"]), 4),
        audit=audited,
    )


def predictor_weights(run: Run) -> dict[str, str]:
    """A checksum of the predictor's folder: if the weights changed, a resumed stage must not keep its old output."""
    return {"predictor": (run.folder("predictor") / "model").checksum()}


def annotator(run: Run, predictor: Storage, fingerprint: str = "") -> dict[str, object]:
    """The arguments of an Annotator that rates with a predictor alone."""
    settings = run.preset.annotate
    return {
        "predictor": (predictor / "model").uri,
        "schema": run.schema,
        "fingerprint": fingerprint,
        "pack_tokens": settings.pack_tokens,
        "max_tokens": settings.max_tokens,
        "over_long": settings.over_long,
        "packing": settings.packing == "on",
        "dtype": settings.pool.dtype,
        "num_threads": max(1, int(settings.pool.cpus_per_actor)),
    }


def calibration(run: Run) -> Calibration:
    """How predicted values become labels: spread by rank, calibrated on the predictor's held-out rows, or unchanged."""
    if run.preset.policy.spread_labels:
        return label_spread(run.folder("annotated") / "rows", run.schema)
    predictor = run.metrics("predictor", PredictorMetrics)
    assert predictor is not None, "the predictor must be finished"
    # A measure of the text stands on the attribute's scale, whatever the predictor's head does.
    return predictor.calibration.without(run.preset.annotate.measures) if run.preset.policy.calibrate else Calibration()
