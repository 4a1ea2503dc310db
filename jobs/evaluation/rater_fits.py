"""What brings values of raters with `calibrate` onto people's scale: fitted on annotated rows, for the manifest.

Rows that the predictor holds out are not fitted on; the errors are those on them. Changes no row.
"""

from data.calibration import MIN_PAIRS
from data.rater_fit import RaterFit, rater_fit
from data.storage import Storage
from jobs.evaluation.held_out import num_buckets, ratings_in
from jobs.pipelines.annotation import whose
from jobs.runner.stage import Run, log, warn


def rater_fits(run: Run, rows: Storage) -> dict[str, RaterFit]:
    """Of each attribute whose raters have `calibrate`, over annotated `rows`; logged."""
    roster = run.preset.roster
    kinds = {name: kind for name in run.schema.names if (kind := roster.fit_of(name))}
    if not kinds:
        return {}
    buckets = num_buckets(run)
    found = ratings_in(rows, run.schema.names, buckets, None)
    trained_N = (found.bucket_N != 0) | (not buckets)
    fits = {}
    for name, kind in kinds.items():
        column = run.schema.names.index(name)
        values = found.human_NA[:, column], found.predicted_NA[:, column]
        fits[name] = fit = rater_fit(whose(roster, name), kind, name, *values, trained_N)
        if kind != "none" and fit.n < MIN_PAIRS:
            warn(f"annotate: {name} of {fit.rater} stays as it is: {fit.n} rated answers are too few for a {kind} fit")
        before, after = ("unknown" if e is None else f"{e:.3f}" for e in (fit.error_before, fit.error_after))
        log(
            f"annotate: {name} of {fit.rater}, {kind} fit on {fit.n:,} answers: mean error on {fit.held_out:,} others "
            f"{before} before, {after} after"
        )
    return fits
