"""Which snapshot of an Iceberg table stage `rows` reads: one from its first split to its last, however often it is
killed. Knows no row and no Parquet.
"""

from collections.abc import Container

from data.iceberg import ICEBERG, Snapshot, has_snapshot, newest_snapshot, read_snapshot
from data.storage import Storage
from jobs.runner.stage import Run, log
from jobs.runner.stage_folder import begun_with

SNAPSHOT = "snapshot "
"""Begins the fingerprint of a table."""


def tables(run: Run) -> dict[str, str]:
    """Table -> the snapshot to read, as a fingerprint: that of a killed run, while it is there, else the newest.

    A finished stage reads a table again that has a new snapshot, as it does with a changed file.
    """
    names = {source.uri for source in run.preset.rows.sources if source.format == ICEBERG}
    if not names:
        return {}
    folder = run.folder("rows")
    begun = {} if run.manifest("rows") else begun_with(folder)
    return {name: f"{SNAPSHOT}{_wanted(name, begun.get(name, ''))}" for name in sorted(names)}


def table_snapshot(folder: Storage, name: str, columns: Container[str]) -> Snapshot:
    """The snapshot that the stage in `folder` began with; the newest if no stage is at work there."""
    begun = begun_with(folder).get(name, "")
    number = int(begun.removeprefix(SNAPSHOT)) if begun else newest_snapshot(name)
    log(f"rows: {name}: snapshot {number}")
    return read_snapshot(name, number, columns)


def _wanted(name: str, begun: str) -> int:
    number = int(begun.removeprefix(SNAPSHOT)) if begun else None
    return number if number is not None and has_snapshot(name, number) else newest_snapshot(name)
