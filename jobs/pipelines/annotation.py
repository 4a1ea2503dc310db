"""Rating rows with the run's predictor: what the workers are given, what they counted, and how raw values become labels.

Shared by every stage that rates answers or trains on predicted values.
"""

from actors.scoring.annotator import Annotator
from data.calibration import Calibration
from data.stage_metrics import AnnotationMetrics, AuditMetrics, PredictorMetrics
from data.storage import Storage
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import Pass, map_rows
from jobs.runner.stage import Run

COUNTS = ("answers", "rated_answers", "answers_cut_off", "truncated", "over_long_unrated", "tokens")


def annotate(run: Run, what: str, sources: list[Storage], target: Storage, fingerprint: str = "") -> AnnotationMetrics:
    """Rate all rows of `sources` into `target` (with a `fingerprint`: those that are not rated yet); returns counts and the mean of each attribute."""
    manifest = run.manifest("predictor")
    assert manifest is not None, "the predictor must be finished"
    arguments = annotator(run, run.folder("predictor"), manifest.fingerprint)
    done = map_rows(what, sources, Annotator, arguments, run.preset.annotate.pool, target, fingerprint, "annotate.pool")
    return summary(done, run.schema.names, audit(what, sources, target, fingerprint))


def summary(done: Pass, names: tuple[str, ...], audited: AuditMetrics) -> AnnotationMetrics:
    """A pass of annotation, with counts, means and the packs' fill from what the workers counted."""
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
    """A checksum of the predictor's folder: weights that changed under the same manifest must not go on with old output."""
    return {"predictor": (run.folder("predictor") / "model").checksum()}


def annotator(run: Run, predictor: Storage, fingerprint: str = "") -> dict[str, object]:
    """What an Annotator is given."""
    settings = run.preset.annotate
    return {
        "predictor": (predictor / "model").uri,
        "schema": run.schema,
        "fingerprint": fingerprint,
        "pack_tokens": settings.pack_tokens,
        "max_tokens": settings.max_tokens,
        "over_long": settings.over_long,
        "dtype": settings.pool.dtype,
        "num_threads": max(1, int(settings.pool.cpus_per_actor)),
    }


def calibration(run: Run) -> Calibration:
    """How predicted values become labels: as the predictor's held-out rows say, or as they are."""
    predictor = run.metrics("predictor", PredictorMetrics)
    assert predictor is not None, "the predictor must be finished"
    return predictor.calibration if run.preset.policy.calibrate else Calibration()
