"""Stage `annotated`, step 2 of SteerLM: the predictor rates every answer of every row, on a Ray Data actor pool.

    python -m jobs.annotate PRESET.yaml [key.path=value ...]

Human and predicted values stand side by side in the output, raw. Killed anywhere, it goes on with the pieces that are there; an audit compares the
ids in and out, and a mismatch fails the stage.
"""

from data.stage_metrics import AnnotationMetrics
from data.storage import Storage
from jobs.pipelines.annotation import annotate, predictor_weights
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, fingerprint_of


def work(run: Run, folder: Storage) -> AnnotationMetrics:
    return annotate(run, "annotate", [run.folder("rows") / "rows"], folder / "rows", fingerprint_of(folder))


def _settings(preset: Preset) -> object:
    return {"annotate": preset.annotate.model_copy(update={"pool": None}), "dtype": preset.annotate.pool.dtype}


STAGE = Stage("annotated", ("rows", "predictor"), _settings, work, resumes=True, contents=predictor_weights)

if __name__ == "__main__":
    main(__doc__, [STAGE])
