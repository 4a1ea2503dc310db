"""Stage `annotated`, step 2 of SteerLM: every answer of every row is rated, on a Ray Data actor pool.

    python -m jobs.annotate PRESET.yaml [key.path=value ...]

The predictor rates; attributes of `annotate.measures` are measures of the text, and `text_rater.json` keeps their
scale. The output has human and predicted values side by side, raw. A killed stage resumes with the pieces that exist;
an audit compares the ids in and out, and a mismatch fails the stage.
"""

from data.stage_metrics import AnnotationMetrics
from data.storage import Storage
from jobs.pipelines.annotation import annotate, predictor_weights, scoring_settings, write_text_rater
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, fingerprint_of


def work(run: Run, folder: Storage) -> AnnotationMetrics:
    write_text_rater(run, folder)
    return annotate(run, "annotate", [run.folder("rows") / "rows"], folder / "rows", fingerprint_of(folder))


def _settings(preset: Preset) -> object:
    settings = preset.annotate
    measures = {"measures": settings.measures, "cuts": settings.cuts} if settings.measures else {}
    return {"annotate": scoring_settings(settings), "dtype": settings.pool.dtype, **measures}


STAGE = Stage("annotated", ("rows", "predictor"), _settings, work, resumes=True, contents=predictor_weights)

if __name__ == "__main__":
    main(__doc__, [STAGE])
