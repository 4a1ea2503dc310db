"""The sources that a training's weights name: each must be one of the run's rows."""

from collections.abc import Collection, Mapping

from cluster.settings.errors import did_you_mean
from data.loader import sources
from data.stage_metrics import RowsMetrics
from jobs.runner.stage import Run, StageError


def require_sources(setting: str, weights: Mapping[str, float], run: Run, others: Collection[str] = ()) -> None:
    """Raise StageError, with the nearest name, for a weight of a source that neither the rows nor `others` have."""
    rows = run.metrics("rows", RowsMetrics) if weights else None
    # Version 0.2 counted by the names in the preset, which rows of ours and of the synthetic world do not have.
    known = sorted({*(rows.sources or sources(run.folder("rows") / "rows")), *others}) if rows else []
    for name in weights:
        if name not in known:
            raise StageError(
                f"{setting} has {name!r}, but no row has this source{did_you_mean(name, known)}; "
                f"the sources are {', '.join(known)}"
            )
