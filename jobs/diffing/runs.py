"""A run as a folder: its stages, finished and unfinished. Reads manifests alone."""

import os
import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data.errors import UserError
from data.run_layout import MANIFEST, PROGRESS, Manifest, read_manifest
from data.storage import Storage
from data.uris import shown_uri

AT_ONCE = 16
EXAMPLE = "give the folder of a run, STORAGE/RUN, for example runs/demo"


@dataclass(frozen=True)
class FoundRun:
    """One of the two runs."""

    folder: Storage
    manifests: Mapping[str, Manifest]
    """Of the finished stages, in the order in which they finished."""
    unfinished: tuple[str, ...]

    def state(self, stage: str) -> str:
        """finished, unfinished or missing."""
        return "finished" if stage in self.manifests else "unfinished" if stage in self.unfinished else "missing"


def found_runs(a: str, b: str) -> tuple[FoundRun, FoundRun]:
    """Both runs; raises UserError for a folder that is none, and for the same folder twice."""
    if _place(Storage(a)) == _place(Storage(b)):
        raise UserError(f"{shown_uri(a)} and {shown_uri(b)} are the same folder; give two runs")
    return found_run(a), found_run(b)


def found_run(uri: str) -> FoundRun:
    """By one listing; raises UserError for a folder that is no run."""
    folder = Storage(uri)
    finished, begun = (
        {posixpath.dirname(name) for name in folder.names(mark) if posixpath.basename(name) == mark}
        for mark in (MANIFEST, PROGRESS)
    )
    if not (finished or begun):
        raise UserError(f"{shown_uri(uri)} is no run: there is no stage's {MANIFEST} in it; {EXAMPLE}")
    if "" in finished | begun:
        raise UserError(f"{shown_uri(uri)} is the folder of one stage; {EXAMPLE}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [m for m in pool.map(lambda name: read_manifest(folder / name), sorted(finished)) if m]
    for name, manifest in zip(sorted(finished), found, strict=True):
        if manifest.stage != name:
            raise UserError(
                f"{shown_uri(uri)} is no run: {name}/{MANIFEST} is that of stage {manifest.stage!r}; {EXAMPLE}"
            )
    ordered = sorted(found, key=lambda manifest: manifest.finished)
    return FoundRun(folder, {m.stage: m for m in ordered}, tuple(sorted(begun - finished)))


def _place(storage: Storage) -> tuple[str, str]:
    """Equal for two names of one folder."""
    path = storage.path
    return ("", os.path.realpath(path)) if storage.is_local else (str(storage.fs.protocol), path.rstrip("/"))
