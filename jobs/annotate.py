"""Stage `annotated`, step 2 of SteerLM: the predictor rates every answer of every row, on a Ray Data actor pool.

    python -m jobs.annotate PRESET.yaml [key.path=value ...]

Human and predicted values stand side by side in the output, raw. An audit compares the ids in and out; a mismatch fails the stage.
"""

from collections import Counter

import numpy as np

from actors.annotator import Annotator
from data.conversation import from_table
from data.storage import Storage
from jobs.command import main
from jobs.pipelines import audit, ids_of, map_rows
from jobs.preset import Preset
from jobs.stage import Figures, Run, Stage
from jobs.train_predictor import annotator


def annotate(run: Run, what: str, source: Storage, target: Storage) -> Figures:
    """Rate all rows of `source` into `target`; returns counts and the mean of each attribute."""
    manifest = run.manifest("predictor")
    assert manifest is not None, "the predictor must be finished"
    arguments = annotator(run, run.folder("predictor"), manifest["fingerprint"])
    figures = map_rows(what, [source], Annotator, arguments, run.preset.annotate.pool, target)
    audit(what, ids_of(source), ids_of(target))
    return figures | summary(run, target)


def summary(run: Run, folder: Storage) -> Figures:
    """Counts over annotated rows, one table at a time."""
    counts: Counter[str] = Counter()
    sums = dict.fromkeys(run.schema.names, 0.0)
    for table in folder.tables():
        for row in from_table(table):
            rated = [v for v in row.predicted if v]
            counts.update(
                answers=row.num_answers, rated_answers=len(rated), answers_cut_off=row.num_answers - len(rated), truncated=row.truncated, tokens=row.tokens
            )
            for name in sums:
                sums[name] += float(np.sum([v[name] for v in rated]))
    return {"counts": dict(counts), "predicted_mean": {n: round(s / max(1, counts["rated_answers"]), 4) for n, s in sums.items()}}


def work(run: Run, folder: Storage) -> Figures:
    return annotate(run, "annotate", run.folder("rows") / "rows", folder / "rows")


def _settings(preset: Preset) -> object:
    return {"annotate": preset.annotate.model_copy(update={"pool": None}), "dtype": preset.annotate.pool.dtype}


STAGE = Stage("annotated", ("rows", "predictor"), _settings, work)

if __name__ == "__main__":
    main(__doc__, [STAGE])
