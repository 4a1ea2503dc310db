"""Stage `annotated`, step 2 of SteerLM: the predictor rates every answer of every row, on a Ray Data actor pool.

    python -m jobs.annotate PRESET.yaml [key.path=value ...]

The output has human and predicted values side by side, raw. A killed stage resumes with the pieces that exist; an audit
compares the ids in and out, and a mismatch fails the stage.
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
