"""Which policy to serve: a folder, a finished run, the newest one, an exported adapter or its base, or a package.

Knows a run's layout, no model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath

from data.errors import UserError
from data.run_layout import MANIFEST, MODEL, read_manifest
from data.steering_metrics import ReportMetrics
from data.storage import Storage
from serve.ready import is_adapter, ready, ready_base
from serve.settings import BASE, FROM_THE_RUN, NAME, ServeSettings
from serve.untrained import PACKAGE, untrained

NEWEST = "newest"


@dataclass(frozen=True)
class Located:
    """A policy folder and the name that callers know it by."""

    uri: str
    name: str
    weight: float = 1.0
    """Its share of the requests that name no model."""
    predictor: str | None = None
    """The predictor of its run."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Those beside it: name -> folder."""


def locate(policy: str, storage: str, attributes: str = "style") -> Located:
    """Raises UserError with the remedy if there is no such policy. `attributes`: of one that is a package."""
    if policy.startswith(PACKAGE):
        return Located(untrained(policy, attributes, Storage(storage)).uri, policy.removeprefix(PACKAGE))
    if policy == NEWEST:
        return _of_run(_newest_run(Storage(storage)))
    folder = Storage(policy)
    if is_adapter(folder):
        model, predictor = ready(folder, Storage(storage))
        return Located(model.uri, _name(folder), predictor=predictor.uri if predictor else None)
    if (folder / "report" / MANIFEST).exists():
        return _of_run(folder)
    if (folder / "config.json").exists():
        return Located(folder.uri, _name(folder))
    remedy = f"set policy to a folder with config.json, to an exported adapter, to a finished run, or to {NEWEST!r}"
    raise UserError(f"no policy at {folder.uri}: {remedy}")


def locate_all(settings: ServeSettings) -> tuple[list[Located], str | None]:
    """The policies to serve, and the predictor of their answers, if any; raises UserError if one is missing."""
    if settings.models:
        where = settings.storage, settings.attributes
        models = [replace(locate(m.policy, *where), name=m.name, weight=m.weight) for m in settings.models]
    else:
        for name, folder in settings.adapters.items():
            require_adapter(name, folder)
        found = _alone(settings)
        models = [replace(found, name=settings.name or found.name, adapters=settings.adapters)]
        if models[0].name in settings.adapters:
            raise UserError(f"adapters has {models[0].name!r}, which is the policy's own name: set name to another")
    predictor = models[0].predictor if settings.predictor == FROM_THE_RUN else settings.predictor
    if predictor is not None and not (Storage(predictor) / "config.json").exists():
        remedy = f"set predictor to a folder with config.json, to {FROM_THE_RUN!r}, or to null"
        raise UserError(f"no predictor at {predictor}: {remedy}")
    if predictor is None and settings.live.store is not None:
        remedy = "set predictor to a folder with config.json, or live.store to null"
        raise UserError(f"live.store is set, but no attribute predictor is served that could rate an answer: {remedy}")
    return models, predictor


def require_adapter(name: str, folder: str) -> None:
    """Raises UserError if there is no exported adapter."""
    if not is_adapter(Storage(folder)):
        raise UserError(
            f"adapter {name}: no exported adapter at {folder}; write one with `python -m jobs.export PRESET.yaml "
            "what=adapter to=FOLDER`, or correct the folder"
        )


def require_name(name: str) -> None:
    """Raises UserError if callers could not write it as `model`."""
    if not re.match(NAME, name):
        raise UserError(f"{name[:60]!r} is no name of a model: take letters, digits, dots, underscores and dashes")


def _alone(settings: ServeSettings) -> Located:
    if settings.policy != BASE:
        return locate(settings.policy, settings.storage, settings.attributes)
    folder = Storage(next(iter(settings.adapters.values())))
    return Located(ready_base(folder, Storage(settings.storage)).uri, BASE)


def _newest_run(storage: Storage) -> Storage:
    finished = []
    if storage.exists():
        for path in storage.fs.ls(storage.path, detail=False):
            run = storage / PurePosixPath(path.rstrip("/")).name
            manifest = run / "report" / MANIFEST
            if manifest.exists():
                modified: datetime = manifest.fs.modified(manifest.path)
                finished.append((modified, run.uri))
    if not finished:
        raise UserError(f"no finished run in {storage.uri}: run `make demo` first, or set policy to a policy folder")
    return Storage(max(finished)[1])


def _of_run(run: Storage) -> Located:
    """The policy that the run's report is about: the last one that was promoted."""
    manifest = read_manifest(run / "report")
    report = manifest.read_as(ReportMetrics) if manifest else None
    assert report is not None, "only a finished run is asked for its policy"
    folder = run / report.policy_stage / MODEL
    if not (folder / "config.json").exists():
        remedy = "run it again, or set policy to a policy folder"
        raise UserError(f"run {run.uri} is finished but has no policy at {folder.uri}: {remedy}")
    predictor = run / "predictor" / MODEL
    return Located(folder.uri, _name(run), predictor=predictor.uri if (predictor / "config.json").exists() else None)


def _name(folder: Storage) -> str:
    return PurePosixPath(folder.uri.rstrip("/")).name
