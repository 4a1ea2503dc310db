"""Rating rows with the run's predictor: the workers' arguments and counters, and how raw values become labels.

Shared by every stage that rates answers or trains on predicted values.
"""

from collections.abc import Mapping

from actors.scoring.panel import OtherRaters
from data.calibration import Calibration
from data.counters import Counters
from data.label_spread import label_spread, text_rater
from data.rater_metrics import AGAIN, MERGED, VALUED, agreement_lines, rater_metrics
from data.roster import Roster
from data.run_layout import TEXT_RATER, read_record, write_record
from data.shards import Output, inputs_of
from data.stage_metrics import AnnotationMetrics, AuditMetrics, PredictorMetrics
from data.storage import Storage
from data.text_rater import TextRater
from jobs.pipelines.audit import audit
from jobs.pipelines.judges import judge_spending, remote_judges
from jobs.pipelines.map_rows import Pass, map_rows
from jobs.runner.settings import AnnotateSettings
from jobs.runner.stage import Run, StageError, log
from jobs.runner.start_models import rater_models

COUNTS = ("answers", "rated_answers", "answers_cut_off", "truncated", "over_long_unrated", "tokens")


def annotate(run: Run, what: str, sources: list[Storage], target: Storage, fingerprint: str = "") -> AnnotationMetrics:
    """Rate all rows of `sources` into `target` (with a `fingerprint`: those that are not rated yet)."""
    arguments = rating(run)
    if fingerprint and run.preset.annotate.raters:
        drop_failed_parts(sources, Output(target.uri, fingerprint))
    done = score_with(run, what, sources, arguments, target, fingerprint)
    found = summary(done, run.schema.names, audit(what, sources, target, fingerprint))
    return found.model_copy(update=rater_report(run, what, done.counters)) if run.preset.annotate.raters else found


def drop_failed_parts(sources: list[Storage], output: Output) -> None:
    """Remove parts with answers that a rater failed to rate and may rate now; the pass makes them again."""
    found = output.finished(inputs_of(sources))
    output.parts.remove_files([part for part, counters in found.items() if counters.get(AGAIN)])


def rater_report(run: Run, what: str, counters: Counters) -> dict[str, object]:
    """What the manifest says of the raters; their failures are logged. Raises StageError for too many of one rater."""
    agreement, allowed = rater_metrics(counters, run.preset.roster), run.preset.annotate.max_failed
    for who, name, found in ((who, name, found) for who, of in agreement.items() for name, found in of.items()):
        if not found.num_failed:
            continue
        wanted = found.given + found.num_failed
        reasons = ", ".join(f"{reason}: {num:,}" for reason, num in sorted(found.failed.items()))
        sentence = f"{what}: {who} failed to rate {name} in {found.num_failed:,} of {wanted:,} answers ({reasons})"
        if found.num_failed > allowed * wanted:
            raise StageError(
                f"{sentence}; annotate.max_failed allows {allowed:.1%}. What is rated is kept: the same command asks "
                "again where another reply may come; or raise annotate.max_failed"
            )
        log(sentence)
    for line in agreement_lines(agreement):
        log(f"{what}: {line}")
    spending = judge_spending(run)
    for who, taken in spending.items():
        log(f"{what}: {who} has taken {taken.words()} in this run so far")
    return {"raters": raters_of(run), "agreement": agreement} | ({"judges": spending} if spending else {})


def rating(run: Run) -> dict[str, object]:
    """The arguments of an Annotator that rates as stage annotated does: with the predictor and all other raters."""
    manifest = run.manifest("predictor")
    assert manifest is not None, "the predictor must be finished"
    arguments = annotator(run, run.folder("predictor"), manifest.fingerprint)
    if not run.preset.annotate.raters:
        return arguments
    others = OtherRaters(run.preset.roster, read_text_rater(run), remote_judges(run), rater_models(run))
    return arguments | {"others": others}


def write_text_rater(run: Run, folder: Storage) -> None:
    """Scale the text rater's measures over the answers of stage rows, into the `folder` of stage annotated.

    The same rows give the same scale. Raises UserError if they are too few to rank.
    """
    if text := run.preset.roster.text:
        rater = text_rater(run.folder("rows") / "rows", run.schema, text.attributes, text.cuts)
        write_record(folder / TEXT_RATER, rater)


def read_text_rater(run: Run) -> TextRater:
    """Of stage annotated; one that rates nothing if there is none."""
    if not run.preset.roster.text:
        return TextRater()
    return read_record(run.folder("annotated") / TEXT_RATER, TextRater)


def endpoint_rater(run: Run) -> TextRater:
    """How an endpoint measures what the policy was taught: by text where that gave the labels, else by the predictor.

    Of attributes that other raters gave, alone or with others, it measures nothing.
    """
    roster, rater = run.preset.roster, read_text_rater(run)
    if not roster.elsewhere:
        return rater
    return TextRater(measures=roster.measures, scale=rater.scale, elsewhere=roster.elsewhere)


def raters_of(run: Run) -> dict[str, str]:
    """Attribute -> who gives its values; empty if the predictor gives all."""
    return run.preset.roster.described if run.preset.annotate.raters else {}


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
        predicted_mean={
            name: round(counters[f"sum/{name}"] / max(1, counters.get(VALUED + name, rated)), 4) for name in names
        },
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
        "num_threads": max(1, int(settings.pool.cpus_per_actor) // settings.tensor_parallel),
        "tensor_parallel": settings.tensor_parallel,
    }


def calibration(run: Run) -> Calibration:
    """How predicted values become labels: spread by rank, calibrated on the predictor's held-out rows, or unchanged."""
    if run.preset.policy.spread_labels:
        return label_spread(run.folder("annotated") / "rows", run.schema)
    predictor = run.metrics("predictor", PredictorMetrics)
    assert predictor is not None, "the predictor must be finished"
    if not run.preset.policy.calibrate:
        return Calibration()
    # A measure of the text stands on the attribute's scale, whatever the predictor's head does.
    roster = run.preset.roster
    own = predictor.calibration.without([*roster.unpredicted, *roster.elsewhere])
    return _with_others(run, own) if roster.elsewhere else own


def _with_others(run: Run, own: Calibration) -> Calibration:
    """With that of other raters' values, on the annotated answers that people rated as well."""
    annotated, roster = run.metrics("annotated", AnnotationMetrics), run.preset.roster
    assert annotated is not None, "the rows must be annotated"
    scale, shift, points = dict(own.scale), dict(own.shift), dict(own.points)
    for name in roster.elsewhere:
        if fit := annotated.fits.get(name):
            found = fit.calibration
            scale, shift, points = scale | found.scale, shift | found.shift, points | found.points
            continue
        agreement = annotated.agreement[whose(roster, name)][name]
        scale[name], shift[name] = agreement.scale, agreement.shift
    return Calibration(scale=scale, shift=shift, points=points)


def whose(roster: Roster, attribute: str) -> str:
    """The rater of an attribute, or MERGED for the one value of several."""
    givers = roster.of(attribute)
    return MERGED if len(givers) > 1 else givers[0].name
