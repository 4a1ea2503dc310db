"""Stage `predictor`, step 1 of SteerLM: learn to rate an answer from people's ratings.

    python -m jobs.train_predictor PRESET.yaml [key.path=value ...]

What it says of rows it never saw stands beside two things to beat: the length of the text, and in the laboratory a single rater.
"""

from collections.abc import Iterator

import numpy as np

from actors.annotator import Annotator
from actors.examples import PredictorExamples
from actors.regressor import PredictorTask
from data.calibration import matched_to_people
from data.conversation import Conversation, from_table, to_table
from data.feed import Feed, bucket
from data.lab import Lab
from data.measures import errors, spearman
from data.storage import Storage
from jobs.command import main
from jobs.pipelines import map_rows, write_table
from jobs.preset import Preset
from jobs.stage import Figures, Run, Stage, StageError, say
from jobs.training import base_uri, buckets_for, example_spec, fit, make_examples


def work(run: Run, folder: Storage) -> Figures:
    """Train on all rated groups but those held out; with folds, first one predictor per fold for the out-of-fold figures."""
    settings = run.preset.predictor
    rows = run.folder("rows") / "rows"
    make_examples("predictor", [rows], PredictorExamples, {"spec": example_spec(run, settings.learner)}, folder / "examples")
    feed = Feed((folder / "examples").tables())
    if not len(feed):
        raise StageError(
            f"no rated conversation to learn from (rejected: {feed.rejected}); rows.sources needs rows with ratings of {', '.join(run.schema.names)}"
        )
    task = PredictorTask(base_uri(run), run.schema, run.preset.template)
    buckets = settings.folds or buckets_for(settings.validation_share)
    rated: list[Conversation] = []
    for fold in range(settings.folds):
        output = folder / f"fold-{fold}"
        fit(f"predictor, fold {fold + 1} of {settings.folds}", task, settings.learner, folder / "examples", output, buckets, fold)
        rated += score_held_out(run, output, buckets, fold)
    final = fit("predictor", task, settings.learner, folder / "examples", folder, 0 if settings.folds else buckets)
    if not settings.folds:
        rated = score_held_out(run, folder, buckets, 0) if buckets else []
    figures: Figures = {"training": final, "counts": {"examples": len(feed), **feed.rejected}}
    if rated:
        figures["held_out"] = quality(run, rated)
        figures["calibration"] = matched_to_people(rated, run.schema).model_dump()
        for name, figure in figures["held_out"].items():
            say(f"predictor on rows it never saw: {name}: {figure}")
    return figures


def score_held_out(run: Run, output: Storage, buckets: int, held_out: int) -> list[Conversation]:
    """The rated rows in bucket `held_out`, scored by the predictor at `output`, which did not train on them."""
    rows = [row for table in (run.folder("rows") / "rows").tables() for row in from_table(table) if any(row.human) and bucket(row.group, buckets) == held_out]
    if not rows:
        return []
    write_table(to_table(rows, run.schema), output / "held_out")
    map_rows("predictor: held-out rows", [output / "held_out"], Annotator, annotator(run, output), run.preset.annotate.pool, output / "scored")
    return [row for table in (output / "scored").tables() for row in from_table(table)]


def annotator(run: Run, predictor: Storage, fingerprint: str = "") -> dict[str, object]:
    """What an Annotator is given."""
    settings = run.preset.annotate
    return {
        "predictor": (predictor / "model").uri,
        "schema": run.schema,
        "fingerprint": fingerprint,
        "row_tokens": settings.row_tokens,
        "max_tokens": settings.max_tokens,
        "dtype": settings.pool.dtype,
        "num_threads": max(1, int(settings.pool.cpus_per_actor)),
    }


def quality(run: Run, rows: list[Conversation]) -> Figures:
    """Per attribute: errors against the human values, Spearman of the text's length with them; in the laboratory also both against the truth."""
    lab = Lab(run.preset.rows.lab) if any(s.format == "lab" for s in run.preset.rows.sources) else None
    answers = list(_answers(rows, lab))
    figures: Figures = {}
    for name in run.schema.names:
        human, predicted, truth = (np.array([a[kind].get(name, np.nan) for a in answers]) for kind in ("human", "predicted", "truth"))
        figures[name] = _rounded(errors(human, predicted)) | {"spearman_length": round(spearman(human, [a["length"]["n"] for a in answers]), 4)}
        if lab:
            figures[name]["truth"] = {"predictor": _rounded(errors(truth, predicted)), "one_rater": _rounded(errors(truth, human))}
    return figures


def _answers(rows: list[Conversation], lab: Lab | None) -> Iterator[dict[str, dict[str, float]]]:
    for row in rows:
        contents = [m.content for m in row.messages if m.role == "assistant"]
        truths = lab.truth(row) if lab else ({},) * len(contents)
        for content, human, predicted, truth in zip(contents, row.human, row.predicted, truths, strict=True):
            yield {"human": dict(human), "predicted": dict(predicted), "truth": dict(truth), "length": {"n": float(len(content))}}


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in figures.items()}


def _settings(preset: Preset) -> object:
    return {"predictor": preset.predictor, "template": preset.template, "scoring": preset.annotate.model_copy(update={"pool": None})}


STAGE = Stage("predictor", ("rows", "base"), _settings, work)

if __name__ == "__main__":
    main(__doc__, [STAGE])
