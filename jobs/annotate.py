"""Stage `annotated`, step 2 of SteerLM: every answer of every row is rated, on a Ray Data actor pool.

    python -m jobs.annotate PRESET.yaml [key.path=value ...]

The predictor rates, and the raters of `annotate.raters` do: measures of the text, models of others, functions, judges.
The output has human and predicted values side by side, raw. A killed stage resumes with the pieces that exist;
an audit compares the ids in and out, and a mismatch fails the stage.
"""

import hashlib
import importlib.util
from pathlib import Path

from data.errors import UserError
from data.rater_settings import PythonRaterSettings
from data.stage_metrics import AnnotationMetrics
from data.storage import Storage
from jobs.evaluation.rater_fits import rater_fits
from jobs.pipelines.annotation import annotate, predictor_weights, scoring_settings, write_text_rater
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, fingerprint_of
from jobs.runner.start_models import rater_models


def work(run: Run, folder: Storage) -> AnnotationMetrics:
    write_text_rater(run, folder)
    found = annotate(run, "annotate", [run.folder("rows") / "rows"], folder / "rows", fingerprint_of(folder))
    fits = rater_fits(run, folder / "rows")
    return found.model_copy(update={"fits": fits}) if fits else found


def _settings(preset: Preset) -> object:
    settings = preset.annotate
    raters = {"raters": settings.raters, "merge": settings.merge} if settings.raters else {}
    return {"annotate": scoring_settings(settings), "dtype": settings.pool.dtype, **raters}


def _functions(run: Run) -> dict[str, str]:
    """Checksums of people's own functions. Raises UserError for one that is not there."""
    return {r.name: _code(r) for r in run.preset.annotate.raters if isinstance(r, PythonRaterSettings)}


def _code(rater: PythonRaterSettings) -> str:
    module = rater.function.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    if spec is None or not spec.origin:
        raise UserError(
            f"{rater.name} has no module {module}; correct `function` in annotate.raters, or put it where the job runs"
        )
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


STAGE = Stage(
    "annotated",
    ("rows", "predictor"),
    _settings,
    work,
    _functions,
    resumes=True,
    contents=predictor_weights,
    models=rater_models,
)

if __name__ == "__main__":
    main(__doc__, [STAGE])
