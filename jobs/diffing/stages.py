"""One stage of two runs: what differs in its settings, rows, labels, models and metrics.

Manifests are compared first: where their digests of rows are equal, no row is read. Prints nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.run_layout import MODEL, Manifest
from data.stage_files import Found, found_files, is_page, samples
from data.storage import Storage
from jobs.diffing.parts import Part, parts_of
from jobs.diffing.rows import RowsDiff, folders_of, rows_diff
from jobs.diffing.runs import FoundRun
from jobs.diffing.settings import DiffSettings
from jobs.runner.changes import Change, changes


@dataclass
class StageDiff:
    """How one stage differs."""

    name: str
    states: tuple[str, str]
    """In each run: finished, unfinished or missing."""
    seconds: tuple[float | None, float | None]
    settings: list[Change] = field(default_factory=list)
    """Also the schema, inputs from outside, and the fingerprints of the stages that it read."""
    metrics: list[Change] = field(default_factory=list)
    """Costs, too, which count for nothing."""
    rows: dict[str, RowsDiff] = field(default_factory=dict)
    """Folders whose rows differ."""
    files: list[str] = field(default_factory=list)
    """Files of models and other tables that differ or are in one run alone."""
    rows_unread: bool = False
    """The digests in the manifests say that all rows are equal."""

    @property
    def what(self) -> list[str]:
        """The kinds of what differs; nothing if the stage is equal."""
        if self.states != ("finished", "finished"):
            return [f"{state} in {run}" for run, state in zip("ab", self.states, strict=True) if state != "finished"]
        rows = self.rows.values()
        kinds = {
            "settings": bool(self.settings),
            "rows": any(r.only[0].count or r.only[1].count or r.both.texts.count or r.reordered for r in rows),
            "labels": any(r.both.relabeled for r in rows),
            "other columns": any(r.both.others for r in rows),
            "model": any(_is_model(name) for name in self.files),
            "other tables": any(not _is_model(name) for name in self.files),
            "metrics": any(not change.is_cost for change in self.metrics),
        }
        return [kind for kind, differs in kinds.items() if differs]


def stage_diffs(a: FoundRun, b: FoundRun, settings: DiffSettings) -> list[StageDiff]:
    """All stages of both runs, in the order in which they finished."""
    names = dict.fromkeys([*a.manifests, *b.manifests, *a.unfinished, *b.unfinished])
    return [_stage_diff(name, a, b, settings) for name in names]


def _stage_diff(name: str, a: FoundRun, b: FoundRun, settings: DiffSettings) -> StageDiff:
    one, other = a.manifests.get(name), b.manifests.get(name)
    found = StageDiff(
        name,
        states=(a.state(name), b.state(name)),
        seconds=(one.seconds if one else None, other.seconds if other else None),
    )
    if not (one and other):
        return found
    found.settings = list(changes(one.description, other.description))
    if one.fingerprint != other.fingerprint and not found.settings:
        # Manifests hold no credential; the fingerprint is that of the settings with it.
        found.settings = [Change("a credential in a URI", "...", "...")]
    found.metrics = list(changes(_without_places(one.metrics), _without_places(other.metrics), settings.tolerance))
    found.rows_unread = _same_content(one, other)
    folders = (a.folder / name, b.folder / name)
    if not found.rows_unread:
        _compare_tables(found, *folders, settings)
    models = (folders[0] / MODEL, folders[1] / MODEL)
    listed = (found_files(models[0]), found_files(models[1]))
    found.files += [f"{MODEL}/{file}" for file in _unequal_files(models, listed)]
    return found


def _same_content(a: Manifest, b: Manifest) -> bool:
    return bool(a.files and b.files and a.files.content and a.files.content == b.files.content)


def _compare_tables(found: StageDiff, a: Storage, b: Storage, settings: DiffSettings) -> None:
    listed = [_tables(folder) for folder in (a, b)]
    by_folder = [folders_of(list(files)) for files in listed]
    for folder in sorted({*by_folder[0], *by_folder[1]}):
        one, other = (parts_of(side, names.get(folder, [])) for side, names in zip((a, b), by_folder, strict=True))
        if all(part.has_rows for part in (*one.values(), *other.values())):
            rows = rows_diff(one, other, settings)
            found.rows |= {folder: rows} if rows.differs else {}
            continue
        left = [{name: listed[0][name] for name in _without_equal(one, other)}]
        left += [{name: listed[1][name] for name in _without_equal(other, one)}]
        found.files += _unequal_files((a, b), (left[0], left[1]))


def _tables(folder: Storage) -> Found:
    return {name: facts for name, facts in found_files(folder).items() if name.endswith(".parquet")}


def _without_equal(parts: Mapping[str, Part], others: Mapping[str, Part]) -> list[str]:
    """The names of the parts whose digests do not say that they are equal."""
    return [n for n, part in parts.items() if n not in others or not part.content or part.content != others[n].content]


def _unequal_files(folders: tuple[Storage, Storage], found: tuple[Found, Found]) -> list[str]:
    """Files that are in one folder alone, or of another size, or of another content where it is sampled."""
    a, b = found
    unequal = {*(a.keys() ^ b.keys()), *(name for name in a.keys() & b.keys() if a[name][0] != b[name][0])}
    left = [name for name in a if name not in unequal and not is_page(name)]
    contents = (samples(folder, left, files) for folder, files in zip(folders, found, strict=True))
    return sorted(unequal | {name for name, one, other in zip(left, *contents, strict=True) if one != other})


def _is_model(name: str) -> bool:
    return name.startswith(f"{MODEL}/")


def _without_places(metrics: Any) -> Any:
    """Without the URIs of files, which name the run."""
    if isinstance(metrics, Mapping):
        return {key: _without_places(value) for key, value in metrics.items() if not _is_place(value)}
    return metrics


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and ("://" in value or value.startswith("/"))
