"""Where things lie in a run's folder, and the manifest that each of its stages leaves: written and read here alone.

A stage's folder holds `progress.json`, written first: the mark of a folder that is ours; and `manifest.json`, written
last: no manifest, no stage. Knows no stage's work and no settings.
"""

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ValidationError

from data.errors import UserError
from data.printable import printable
from data.record import Record
from data.stage_metrics import StageMetrics
from data.storage import Storage

MANIFEST, PROGRESS, FILES = "manifest.json", "progress.json", "files.json"
"""Of a stage: its result, its mark and inputs, and all the files that it left (`data.stage_files`)."""
MODEL, TRAINING, REPORT, QUALITY = "model", "training.json", "report.json", "quality.json"
"""Beside a manifest: a model's folder, its loss curves, all metrics of the report, all metrics of the predictor."""
COMPARE, PAIRS = "compare", "pairs.jsonl"
"""The folder of the stages that compare the policy with other models; both answers to each question of a comparison."""
BENCHMARKS = "benchmarks"
"""The folder of the stages that test a predictor or a policy on public sets."""
TEXT_RATER = "text_rater.json"
"""In the folder of stage annotated: what its text rater measures, and on which scale; no file = there is none."""

M = TypeVar("M", bound=StageMetrics)
R = TypeVar("R", bound=Record)


def require_one_folder(name: str) -> str:
    """The name itself; raises UserError if it could name any folder but one right below another."""
    if name in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
        raise UserError(
            f"{printable(name)!r} is not the name of one folder; take 1 to 200 letters, digits and any of "
            "'._-', no '/', and not '.' or '..'"
        )
    return name


FolderName = Annotated[str, AfterValidator(require_one_folder)]
"""A setting that names a folder right below another."""


class StageFiles(Record):
    """All files of a finished stage, in short."""

    num_files: int
    total_bytes: int
    digest: str
    """Of names, sizes and tags."""
    content: str = ""
    """Of the rows of all Parquet files, in any storage (`data.row_digest`); "" = none, or not known."""


class Manifest(Record):
    """What a finished stage says of its result."""

    stage: str
    fingerprint: str
    """16 hex digits of `description`: equal ones need no second run."""
    description: dict[str, Any]
    """All that the result depends on: settings, schema, inputs from outside, fingerprints of the stages it read."""
    metrics: dict[str, Any]
    """A `StageMetrics` record, as JSON; `read_as` gives it its type back."""
    seconds: float
    finished: str
    """UTC, `2026-11-22T12:00:00Z`."""
    versions: dict[str, str]
    """Of the libraries that did the work."""
    files: StageFiles | None = None
    """What the stage left; None = an earlier version, which recorded nothing to compare with."""

    def read_as(self, kind: type[M]) -> M | None:
        """The metrics as a record; None if the stage had nothing to do. Raises UserError for another kind."""
        if "not_run" in self.metrics and "not_run" not in kind.model_fields:
            return None
        return _valid(kind, self.metrics, f"the manifest of stage {self.stage}")


def read_manifest(folder: Storage) -> Manifest | None:
    """None if the stage in `folder` is unfinished. Raises UserError unless the file is a manifest of this version."""
    file = folder / MANIFEST
    return read_record(file, Manifest) if file.exists() else None


def read_record(file: Storage, kind: type[R]) -> R:
    """A record that a stage left as JSON; raises UserError for what is none of this version."""
    return _valid(kind, file.read_json(), file.uri)


def write_record(file: Storage, record: Record) -> None:
    """As JSON, whole or not at all."""
    file.write_json(as_json(record))


def as_json(record: Record) -> dict[str, Any]:
    """What was set in the record, with its defaults left out."""
    return record.model_dump(mode="json", exclude_unset=True)


def _valid(kind: type[R], content: Any, where: str) -> R:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{where} is not as this version writes it ({key}: {first['msg']}); "
            "delete the stage's folder and run again, or use the version that wrote it"
        ) from None
