"""Stage `annotated`, step 2 of SteerLM: the predictor rates every answer of every row, on a Ray Data actor pool.

    python -m jobs.annotate PRESET.yaml [key.path=value ...]

Human and predicted values stand side by side in the output, raw. Killed anywhere, it goes on with the pieces that are there; an audit compares the
ids in and out, and a mismatch fails the stage.
"""

from actors.scoring.annotator import Annotator
from data.storage import Storage
from data.tally import Tally
from jobs.audit import audit
from jobs.command import main
from jobs.pipelines import map_rows
from jobs.preset import Preset
from jobs.stage import Figures, Run, Stage, stamp_of
from jobs.train_predictor import annotator

COUNTS = ("answers", "rated_answers", "answers_cut_off", "truncated", "over_long_unrated", "tokens")


def annotate(run: Run, what: str, sources: list[Storage], target: Storage, stamp: str = "") -> Figures:
    """Rate all rows of `sources` into `target` (with a `stamp`: those that are not rated yet); returns counts and the mean of each attribute."""
    manifest = run.manifest("predictor")
    assert manifest is not None, "the predictor must be finished"
    arguments = annotator(run, run.folder("predictor"), manifest["fingerprint"])
    figures = map_rows(what, sources, Annotator, arguments, run.preset.annotate.pool, target, stamp, "annotate.pool")
    tally = figures.pop("tally")
    return figures | summary(tally, run.schema.names) | {"audit": audit(what, sources, target, stamp)}


def summary(tally: Tally, names: tuple[str, ...]) -> Figures:
    """Counts, means and the packed rows' fill, from the sum of what the workers counted."""
    rated = max(1, tally["rated_answers"])
    return {
        "counts": {name: int(tally[name]) for name in COUNTS},
        "predicted_mean": {name: round(tally[f"sum/{name}"] / rated, 4) for name in names},
        "row_fill": round(tally["filled_tokens"] / max(1, tally["budget_tokens"]), 4),
    }


def predictor_weights(run: Run) -> dict[str, str]:
    """A checksum of the predictor's folder: weights that changed under the same manifest must not go on with old output."""
    return {"predictor": (run.folder("predictor") / "model").checksum()}


def work(run: Run, folder: Storage) -> Figures:
    return annotate(run, "annotate", [run.folder("rows") / "rows"], folder / "rows", stamp_of(folder))


def _settings(preset: Preset) -> object:
    return {"annotate": preset.annotate.model_copy(update={"pool": None}), "dtype": preset.annotate.pool.dtype}


STAGE = Stage("annotated", ("rows", "predictor"), _settings, work, resumes=True, contents=predictor_weights)

if __name__ == "__main__":
    main(__doc__, [STAGE])
