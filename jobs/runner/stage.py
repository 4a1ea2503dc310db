"""A run and its stages: where they live, when one must run again, and the manifest it leaves.

A stage clears its folder, does its work and writes its manifest last and atomically: no manifest, no stage. A stage
whose fingerprint (settings, schema, inputs) is unchanged and whose files are all there is skipped; for any other the
log names what changed. A stage that resumes keeps what a killed run left, if `progress.json` there names the same
inputs. Knows no stage's content.
"""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from cluster.events import log_event
from cluster.masking import without_credentials, without_secrets
from data.attributes import AttributeSchema
from data.errors import UserError
from data.lease import current_fence
from data.printable import printable
from data.run_layout import (
    MANIFEST,
    PROGRESS,
    M,
    Manifest,
    as_json,
    read_manifest,
    require_one_folder,
    write_record,
)
from data.source_checksums import CheckedSource
from data.stage_files import Difference, difference, record_files
from data.stage_metrics import StageMetrics
from data.storage import Storage
from jobs.runner.changes import changes
from jobs.runner.model_contents import checked_models, with_content, write_index
from jobs.runner.preset import Preset
from jobs.runner.stage_folder import clear, drop_damaged, progress_in, require_ours, write_progress

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "pyarrow")
Metrics = dict[str, Any]


class StageError(UserError):
    """The run cannot go on; the message says why and how to fix it."""


@dataclass(frozen=True)
class Run:
    """A preset and the folder it works in."""

    preset: Preset

    @property
    def schema(self) -> AttributeSchema:
        return self.preset.schema_

    @property
    def root(self) -> Storage:
        return Storage(self.preset.storage) / self.preset.run

    def folder(self, stage: str) -> Storage:
        """Raises UserError for a name that would leave the run's folder."""
        for name in stage.split("/"):
            require_one_folder(name)
        return self.root / stage

    def manifest(self, stage: str) -> Manifest | None:
        """None if the stage is not finished."""
        return read_manifest(self.folder(stage))

    def difference(self, stage: str) -> Difference | None:
        """How the files of a finished stage differ from what it left; None if they do not, or nobody can know."""
        manifest = self.manifest(stage)
        return difference(self.folder(stage), manifest.files) if manifest and manifest.files else None

    def require_whole(self, stage: str, whose: str) -> None:
        """Raise StageError if files of a finished stage are missing or changed. `whose`: begins the sentence."""
        found = self.difference(stage)
        if found and (found.is_damage or found.misleading):
            raise StageError(
                f"{whose} {stage}, but of {printable(self.folder(stage).uri, 120)} {found}; "
                "run `python -m jobs.run` with the same preset: it makes the stage again"
            )

    def metrics(self, stage: str, kind: type[M]) -> M | None:
        """The record that a stage left; None if it is not finished, or had nothing to do."""
        manifest = self.manifest(stage)
        return None if manifest is None else manifest.read_as(kind)


@dataclass(frozen=True)
class Stage:
    """One step of a run. `work` fills the stage's folder and returns the metrics for the manifest."""

    name: str
    needs: tuple[str, ...]
    """Stages whose output it reads."""
    settings: Callable[[Preset], Any]
    """The settings its result depends on; a change runs it again."""
    work: Callable[[Run, Storage], StageMetrics]
    inputs: Callable[[Run], dict[str, str]] = field(default=lambda run: {})
    """Fingerprints of what it reads from outside the run."""
    resumes: bool = False
    """Its work resumes where a killed run stopped; the others start over."""
    contents: Callable[[Run], dict[str, str]] = field(default=lambda run: {})
    """Checksums of what it reads from inside the run, so that a resumed one never mixes old output with new."""
    models: Callable[[Run], dict[str, str]] = field(default=lambda run: {})
    """Setting -> model read from outside the run; the content of a folder, file or URI is one of its inputs."""


@dataclass(frozen=True)
class Performed:
    """A finished stage."""

    manifest: Manifest
    skipped: bool
    """It had finished earlier, and nothing has changed."""


def perform(run: Run, stage: Stage) -> Performed:
    """Run the stage unless its manifest still holds, and all files that it left are there."""
    old, folder = run.manifest(stage.name), run.folder(stage.name)
    description, models = _described(run, stage, old)
    fingerprint = _digest(description)
    lost = run.difference(stage.name) if old and old.fingerprint == fingerprint else None
    if lost and lost.misleading:
        raise StageError(
            f"{printable(folder.uri, 120)}: {lost}; move it away and run again: who reads the stage would read it too"
        )
    if old and old.fingerprint == fingerprint and not (lost and lost.is_damage):
        log_event(_skipped(stage, old, stage.models(run)), "stage.skip", stage=stage.name)
        return Performed(old, True)
    for name in stage.needs:
        run.require_whole(name, f"stage {stage.name} needs")
    # The fingerprint is that of the real settings; what others may read has no credential.
    description = without_secrets(description)
    why = str(lost) if lost else _why(old, description)
    log_event(f"[{stage.name}] running: {why}", "stage.start", stage=stage.name, why=why)
    _prepare(run, stage, folder, fingerprint, lost, description["inputs"])
    write_index(models, folder)
    started = time.monotonic()
    metrics = as_json(stage.work(run, folder))
    if fence := current_fence():
        fence.require()
    manifest = Manifest(
        stage=stage.name,
        fingerprint=fingerprint,
        description=description,
        metrics=without_credentials(metrics),
        seconds=round(time.monotonic() - started, 1),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        files=record_files(folder),
    )
    write_record(folder / MANIFEST, manifest)
    done = f"[{stage.name}] done in {manifest.seconds} s -> {folder.uri}"
    counts = metrics.get("counts", {})
    log_event(done, "stage.end", stage=stage.name, seconds=manifest.seconds, folder=folder.uri, counts=counts)
    return Performed(manifest, False)


def _prepare(
    run: Run, stage: Stage, folder: Storage, fingerprint: str, lost: Difference | None, outside: dict[str, str]
) -> None:
    """Empty the stage's folder, unless its content comes from the same inputs and the stage resumes."""
    manifests = {name: run.manifest(name) for name in stage.needs}
    inputs = {
        "fingerprint": fingerprint,
        # A stage that ran again, even with the same settings, may have another result.
        "needs": {name: m and {"fingerprint": m.fingerprint, "finished": m.finished} for name, m in manifests.items()},
        "contents": stage.contents(run),
    }
    progress = progress_in(folder) or {}
    if stage.resumes and progress.get("inputs") == inputs and not (lost and lost.unrecorded):
        require_ours(folder)
        if lost:
            drop_damaged(folder, lost)
        log_event(f"[{stage.name}] goes on with what an earlier run left", "stage.resume", stage=stage.name)
        return
    clear(folder)
    write_progress(folder, _digest(inputs), inputs, outside)


def fingerprint_of(folder: Storage) -> str:
    """16 hex digits of everything that the output of a stage depends on."""
    return str((folder / PROGRESS).read_json()["fingerprint"])


def require(run: Run, stage: Stage) -> None:
    """Raise StageError unless everything the stage needs is finished."""
    for name in stage.needs:
        if run.manifest(name) is None:
            raise StageError(
                f"stage {stage.name} needs {name}, which is not finished in {run.root.uri}; "
                "run `python -m jobs.run` with the same preset first"
            )


def log(text: str) -> None:
    """A line of progress that is no event of its own."""
    log_event(text, "log")


def warn(text: str) -> None:
    """A line about what does not stop the run, but may be unintended."""
    log_event(text, "warning", "warning")


def _description(run: Run, stage: Stage) -> dict[str, Any]:
    """Everything the stage's result depends on, but for the contents of models."""
    upstream = {}
    for name in stage.needs:
        manifest = run.manifest(name)
        assert manifest is not None, f"{name} must be finished before {stage.name}"
        upstream[name] = manifest.fingerprint
    return {
        "settings": _plain(stage.settings(run.preset)),
        "schema": _plain(run.schema),
        "inputs": stage.inputs(run),
        "needs": upstream,
    }


def _described(run: Run, stage: Stage, old: Manifest | None) -> tuple[dict[str, Any], dict[str, CheckedSource]]:
    """The description with the contents of the models, and these.

    Contents came after runs were made: a stage that finished without them, and is unchanged but for them, holds.
    """
    description = _description(run, stage)
    if old and old.fingerprint == _digest(description):
        return description, {}
    models = checked_models(stage.models(run), run.folder(stage.name))
    contents = {name: model.content() for name, model in models.items()}
    return {**description, "inputs": description["inputs"] | contents}, models


def _skipped(stage: Stage, old: Manifest, models: Mapping[str, str]) -> str:
    unknown = sorted(without_secrets(with_content(models)).keys() - old.description["inputs"].keys())
    but = f" (it is too old to know the content of {', '.join(unknown)})" if unknown else ""
    return f"[{stage.name}] finished earlier, nothing changed{but}: skipped"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # A setting of where a stage runs does not change its result.
        left_out = set(getattr(type(value), "PLACEMENT", ()))
        # A setting that came after runs were made: unset, it is not part of their fingerprints either.
        left_out |= {name for name in getattr(type(value), "LATER", ()) if getattr(value, name) is None}
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name not in left_out}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _why(old: Manifest | None, new: dict[str, Any]) -> str:
    """What differs from the manifest, in words: "policy.learner.epochs 2 -> 3"."""
    if old is None:
        return "no finished result yet"
    found = [f"{c.path} {c.arrow}" for c in changes(old.description, new)] or ["a credential in a URI"]
    shown = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
    return f"changed: {shown}"
