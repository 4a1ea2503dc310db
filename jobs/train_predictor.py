"""Stage `predictor`, step 1 of SteerLM: learn to rate an answer from people's ratings.

    python -m jobs.train_predictor PRESET.yaml [key.path=value ...]

Its metrics on held-out rows, beside baselines, are next to the weights: `quality.json`, `calibration.png`,
`collinearity.png`.
"""

from collections.abc import Collection, Mapping

from data.attributes import AttributeSchema
from data.examples import LABEL, Split, buckets_for
from data.loader import named_counts
from data.quality_metrics import PredictorQuality
from data.ratings import Ratings, joined
from data.run_layout import QUALITY, write_record
from data.source_checksums import checksums
from data.stage_metrics import PredictorMetrics, TrainingMetrics
from data.storage import Storage
from jobs.evaluation.ask import synthetic_world
from jobs.evaluation.held_out import num_buckets, ratings_in, write_held_out
from jobs.evaluation.predictor_pairs import judge_pairs, store_pairs
from jobs.evaluation.predictor_quality import quality
from jobs.pipelines.annotation import annotator, score_rows, scoring_settings
from jobs.pipelines.source_weights import require_sources
from jobs.reporting.figures_training import draw_calibration, draw_collinearity
from jobs.reporting.model_card import write_card
from jobs.reporting.sections_predictor import pair_lines, quality_lines
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError, fingerprint_of, log
from jobs.runner.start_models import backbone_model


def work(run: Run, folder: Storage) -> PredictorMetrics:
    """Train; measure the predictor on held-out answers and on pairs of which people preferred one."""
    from jobs.predictor_training.fits import examples  # with torch

    require_sources("predictor.source_weights", run.preset.predictor.source_weights, run)
    pairs = store_pairs(run, folder / "pairs", run.preset.predictor.pairs)
    found = examples(run, folder / "examples", fingerprint_of(folder))
    labels = label_counts(folder / "examples", run.schema)
    require_labels(labels, run.preset.roster.unpredicted)
    final, held_out = train(run, folder)
    write_card(run, "predictor", run.preset.predictor.learner, final, folder / "model")
    measured = report(run, folder, held_out)
    weights = run.preset.pair_weights()
    agreement = judge_pairs(run, pairs, folder / "pairs", annotator(run, folder), weights)
    if agreement:
        log("\n".join(pair_lines(agreement)))
    return PredictorMetrics(
        training=final.without_curve(),
        counts=found,
        labels=labels,
        held_out={name: row.without_bins() for name, row in measured.attributes.items()},
        calibration=measured.calibration,
        quality=(folder / QUALITY).uri,
        pairs=agreement,
    )


def train(run: Run, folder: Storage) -> tuple[TrainingMetrics, Ratings]:
    """The metrics of the training, and the held-out rated answers with their scores.

    Without folds: the answers of one bucket of groups. With folds: all answers, each scored by a predictor trained
    without its bucket; the final predictor trains on every group (but those that pick its best step).
    """
    from jobs.predictor_training.fits import backbone, fit_predictor, predictor_task  # with torch

    settings, buckets = run.preset.predictor, num_buckets(run)
    task = predictor_task(run, backbone(run, folder), folder / "examples")
    # The best step is picked on groups of its own: picked on the answers of the metrics, it would flatter them.
    validation_buckets = buckets_for(settings.validation_share) if settings.learner.validate_every else 0

    def fitted(what: str, output: Storage, buckets: int, held_out: int) -> TrainingMetrics:
        split = Split(buckets, held_out, validation_buckets)
        return fit_predictor(run, what, task, folder, output, split)

    scored: list[Ratings] = []
    for fold in range(settings.folds):
        fitted(f"predictor, fold {fold + 1} of {settings.folds}", folder / f"fold-{fold}", buckets, fold)
        scored.append(score_held_out(run, folder / f"fold-{fold}", fold))
    final = fitted("predictor", folder, 0 if settings.folds else buckets, 0)
    if buckets and not settings.folds:
        scored.append(score_held_out(run, folder, 0))
    return final, joined(scored, len(run.schema.names))


def label_counts(folder: Storage, schema: AttributeSchema) -> dict[str, dict[str, int]]:
    """Valid, missing and out-of-range labels of each attribute in the tokenized rows."""
    found = named_counts(folder, LABEL)
    kinds = ("valid", "missing", "out_of_range")
    return {name: {kind: found.get(f"{name}/{kind}", 0) for kind in kinds} for name in schema.names}


def require_labels(labels: Mapping[str, Mapping[str, int]], measured: Collection[str] = ()) -> None:
    """Raise StageError for an attribute without labels, unless it is `measured`: its scores would mean nothing."""
    if unrated := [name for name, found in labels.items() if not found["valid"] and name not in measured]:
        others = ", ".join(f"{name}: {found['valid']:,}" for name, found in labels.items() if found["valid"])
        raise StageError(
            f"no answer of any source is rated for {', '.join(unrated)} ({others}), so no predictor can learn it; "
            "rate some, fix the name in the data, take it from another rater (annotate.raters), or take it out of "
            "`attributes`"
        )


def score_held_out(run: Run, output: Storage, held_out: int) -> Ratings:
    """The rated answers in bucket `held_out`, scored by the predictor at `output`, which did not train on them."""
    rows = run.folder("rows") / "rows"
    if not write_held_out(rows, run.schema, num_buckets(run), held_out, output / "held_out"):
        return ratings(run, output / "held_out")
    score_rows(run, "predictor: held-out rows", [output / "held_out"], output, output / "scored")
    scored = ratings(run, output / "scored")
    assert set(scored.bucket_N.tolist()) <= {held_out}, "only held-out answers may be measured and calibrated on"
    return scored


def ratings(run: Run, folder: Storage) -> Ratings:
    """The ratings of all rated answers in the rows at `folder`; in the synthetic world with the truth."""
    lab = run.preset.rows.lab if synthetic_world(run) else None
    return ratings_in(folder, run.schema.names, num_buckets(run), lab)


def report(run: Run, folder: Storage, held_out: Ratings) -> PredictorQuality:
    """Write, log and draw the metrics of the predictor; returns them."""
    found = quality(run.schema, ratings(run, run.folder("rows") / "rows"), held_out)
    write_record(folder / QUALITY, found)
    draw_calibration(run.schema, found, folder / "calibration.png")
    draw_collinearity(found.collinearity, folder / "collinearity.png")
    log("\n".join(quality_lines(found)))
    return found


def _settings(preset: Preset) -> object:
    return {"predictor": preset.predictor, "template": preset.template, "scoring": scoring_settings(preset.annotate)}


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the pair files; a missing file is an error now, not after hours of training."""
    return checksums(*(source.uri for source in run.preset.predictor.pairs))


STAGE = Stage("predictor", ("rows", "base"), _settings, work, _inputs, resumes=True, models=backbone_model)

if __name__ == "__main__":
    main(__doc__, [STAGE])
