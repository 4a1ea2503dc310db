"""What differs between two runs, as lines for people and as the JSON of the last line. Compares nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.printable import printable
from data.uris import shown_uri
from jobs.diffing.labels import Ids, LabelDiff
from jobs.diffing.rows import RowsDiff
from jobs.diffing.runs import FoundRun
from jobs.diffing.settings import DiffSettings
from jobs.diffing.stages import StageDiff
from jobs.reporting.tables import Cell, Table, as_text
from jobs.runner.changes import Change

FIRST_METRICS = ("spearman", "mae", "mean_absolute_gap", "validation_loss", "accuracy", "promoted")
"""Ends of the names of evaluation metrics, which are printed before all others."""


def lines(a: FoundRun, b: FoundRun, stages: Sequence[StageDiff], settings: DiffSettings) -> Iterator[str]:
    """One line a stage, then all that differs in each."""
    yield f"a: {shown_uri(a.folder.uri)}"
    yield f"b: {shown_uri(b.folder.uri)}"
    yield from attribute_lines(a, b)
    rows = [(s.name, *s.seconds, ", ".join(s.what) or "equal") for s in stages]
    yield from ("", *as_text(Table("", ("stage", "a s", "b s", "differs in"), rows)))
    seen: list[Change] = []
    for stage in stages:
        if found := list(_stage_lines(stage, seen, settings.shown)):
            yield from ("", stage.name, *(f"  {line}" for line in found))


def attribute_lines(a: FoundRun, b: FoundRun) -> Iterator[str]:
    """A sentence if the runs have different attributes."""
    one, other = (_scales(run) for run in (a, b))
    if not (one and other) or one == other:
        return
    shared = [name for name, scale in one.items() if other.get(name) == scale]
    parts = [f"{', '.join(names)} {what}" for what, names in _unshared(one, other).items() if names]
    compared = f"labels are compared for {', '.join(shared)}" if shared else "no labels are compared"
    yield f"The runs have different attributes: {'; '.join(parts) or 'another order'}; {compared}."


def _unshared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        "in a alone": [name for name in one if name not in other],
        "in b alone": [name for name in other if name not in one],
        "on another scale": [name for name in one if name in other and one[name] != other[name]],
    }


def _scales(run: FoundRun) -> dict[str, tuple[int, int]]:
    """Attribute -> its scale, as the run's newest stage has them."""
    schemas = [found for m in run.manifests.values() if (found := m.description.get("schema"))]
    attributes = schemas[-1]["attributes"] if schemas else []
    return {printable(a["name"]): (a["low"], a["high"]) for a in attributes}


def _stage_lines(stage: StageDiff, seen: list[Change], shown: int) -> Iterator[str]:
    for state, run in zip(stage.states, "ab", strict=True):
        if state == "unfinished":
            yield f"unfinished in {run}, so nothing of it is compared; `python -m jobs.run` with its preset goes on"
    new = [change for change in stage.settings if change not in seen]
    seen += new
    yield from (f"{printable(change.path, 120)}: {change.arrow}" for change in new)
    if told := len(stage.settings) - len(new):
        yield f"{told} more, as in the stages above"
    for folder, found in stage.rows.items():
        yield from _rows_lines(folder, found)
    if stage.files:
        yield f"files that differ: {_listed(stage.files, shown, len(stage.files))}"
    if "metrics" in stage.what:
        yield from _metric_lines([change for change in stage.metrics if not change.is_cost], shown)


def _rows_lines(folder: str, found: RowsDiff) -> Iterator[str]:
    both, counts = found.both, found.num_rows
    for ids, run in zip(found.only, "ab", strict=True):
        if ids.count:
            yield f"{folder}: {ids.count:,} of {counts['ab'.index(run)]:,} rows in {run} alone: {_ids(ids)}"
    if both.texts.count:
        yield f"{folder}: {both.texts.count:,} rows with another text: {_ids(both.texts)}"
    if found.reordered:
        yield f"{folder}: rows in other files or in another order"
    if both.others:
        yield f"{folder}: other values of {', '.join(f'{name} ({n:,} rows)' for name, n in both.others.items())}"
    if both.relabeled:
        yield f"{folder}: {both.relabeled:,} rows with other labels"
        yield from as_text(Table("", LABEL_COLUMNS, [_label_row(*named) for named in both.labels.items()]))


LABEL_COLUMNS = ("labels", "rows", "answers", "mean |b - a|", "largest", "in row", "rated in one run")


def _label_row(name: tuple[str, str], found: LabelDiff) -> tuple[Cell, ...]:
    largest = (found.mean, found.largest, printable(found.largest_id)) if found.answers else (None, None, None)
    return ".".join(name), found.rows, found.answers, *largest, found.rated_in_one


def _metric_lines(changed: Sequence[Change], shown: int) -> Iterator[str]:
    ordered = sorted(changed, key=lambda c: (not c.path.endswith(FIRST_METRICS), c.path))
    rows = [(printable(c.path, 60), *map(_cell, (c.before, c.after))) for c in ordered[:shown]]
    yield from as_text(Table("", ("metric", "a", "b"), rows)) if rows else ()
    if left := len(ordered) - len(rows):
        yield f"and {left:,} more metrics, in the last line"


def _cell(value: Any) -> Cell:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if value is None or isinstance(value, bool | int) else printable(str(value), 30)


def _ids(ids: Ids) -> str:
    return _listed(ids.first, len(ids.first), ids.count)


def _listed(names: Sequence[str], shown: int, count: int) -> str:
    listed = ", ".join(printable(name) for name in names[:shown])
    return f"{listed} and {count - shown:,} more" if count > shown else listed


# --- the last line ----------------------------------------------------------------------------------------------------


def as_json(a: FoundRun, b: FoundRun, stages: Sequence[StageDiff]) -> dict[str, Any]:
    """All of it; `equal` is what the exit code says."""
    return {
        "a": shown_uri(a.folder.uri),
        "b": shown_uri(b.folder.uri),
        "equal": not any(stage.what for stage in stages),
        "stages": {stage.name: _stage_json(stage) for stage in stages},
    }


def _stage_json(stage: StageDiff) -> dict[str, Any]:
    found = {
        "settings": _changes_json(stage.settings),
        "rows": {folder: _rows_json(rows) for folder, rows in stage.rows.items()},
        "files": stage.files,
        "metrics": _changes_json(stage.metrics),
    }
    by_digest = {"rows_unread": True} if stage.rows_unread else {}
    filled = {name: value for name, value in found.items() if value}
    return {"differs": stage.what, "seconds": list(stage.seconds)} | by_digest | filled


def _changes_json(changes: Sequence[Change]) -> dict[str, list[Any]]:
    return {change.path: [change.before, change.after] for change in changes}


def _rows_json(found: RowsDiff) -> dict[str, Any]:
    labels: dict[str, dict[str, Any]] = {}
    for (column, attribute), diff in found.both.labels.items():
        labels.setdefault(column, {})[attribute] = vars(diff) | {"mean": diff.mean}
    return {
        "rows": list(found.num_rows),
        "only": [_ids_json(ids) for ids in found.only],
        "texts": _ids_json(found.both.texts),
        "reordered": found.reordered,
        "others": dict(found.both.others),
        "relabeled": found.both.relabeled,
        "labels": labels,
    }


def _ids_json(ids: Ids) -> dict[str, Any]:
    return {"count": ids.count, "first": ids.first}
