"""What a finished run made, as folders that other tools read: rows for NeMo-Aligner, TRL and Hugging Face datasets, models for the hub.

    python -m jobs.export PRESET.yaml what=annotated to=URI [format=nemo] [values=labels] [push=owner/name]
    python -m jobs.export PRESET.yaml what=policy to=URI [license=apache-2.0] [push=owner/name]

The folder appears whole, with `export.json` saying what is in it and what is not. No Ray is started: files are read one by one.
"""

import sys
from typing import Literal

from pydantic import Field, model_validator

from cluster.settings.load import command_line
from data.errors import UserError
from data.storage import Storage
from jobs.exporting.hub import push, require_token
from jobs.exporting.models import WantedModel, write_model
from jobs.exporting.rows import ValueKind, WantedRows, write_rows
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, StageError

MANIFEST = "export.json"
MODELS = ("policy", "predictor")


class Export(Preset):
    """A run, what of it is wanted, and where."""

    what: Literal["rows", "annotated", "selected", "policy", "predictor"]
    """rows = as people rated them; annotated = with predicted values; selected = the samples that a bootstrap round kept; or a model."""
    to: str = Field(min_length=1)
    """The folder to make, on any fsspec filesystem; an earlier export there is replaced, anything else is not."""
    round: int | None = Field(None, ge=0)
    """Of selected, and of the policy: which bootstrap round's; None = the last one's samples, the promoted policy; 0 = the policy before all rounds."""
    format: Literal["messages", "nemo", "parquet"] | None = None
    """Of rows: messages (OpenAI, TRL; JSONL; the default), nemo (NeMo-Aligner's conversations; JSONL), parquet (all columns, Hugging Face datasets)."""
    values: ValueKind | None = None
    """Of messages and nemo: human, predicted (raw), or labels = what the policy is conditioned on; None = human for rows, labels for the others."""
    only_rated: bool = False
    """Of messages and nemo: leave out, and count, rows without a single value."""
    license: str = Field("other", pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """The hub's name of the licence: yours to choose, within those of the data and of the base model."""
    datasets: tuple[str, ...] = ()
    """Hub names of the data sets behind it, for the card; sources at hf://datasets/ are named there anyway."""
    push: str = ""
    """owner/name on the Hugging Face hub to upload to, with the token in $HF_TOKEN; empty = do not."""
    private: bool = True
    """Whether a repository that push makes is private."""

    @model_validator(mode="after")
    def _used(self) -> "Export":
        """No setting is ignored."""
        rows = {"format": self.format, "values": self.values, "only_rated": self.only_rated or None}
        given = [name for name, value in rows.items() if value is not None]
        if self.what in MODELS and given:
            raise UserError(
                f"{', '.join(given)} would be ignored: what is {self.what}, and it is about rows; leave it out"
            )
        if self.format == "parquet" and given != ["format"]:
            raise UserError(
                f"{', '.join(given[1:])} would be ignored: format is parquet, which has all rows and all values; leave it out, or take messages"
            )
        if self.round is not None and self.what not in ("selected", "policy"):
            raise UserError(f"round would be ignored: what is {self.what}, of which a run has one; leave it out")
        if self.what == "selected" and self.round == 0:
            raise UserError("round is 0, before which nothing was sampled; set it to 1 or more")
        return self


def export(run: Run, settings: Export) -> Metrics:
    """Make the folder, and push it if asked to."""
    if settings.push:
        require_token(settings.push)
    target = Storage(settings.to)
    _require_free(target)
    with target.replaced() as folder:
        (folder / MANIFEST).write_json({"finished": False})
        found = _write(run, settings, folder)
        metrics: Metrics = {"what": settings.what, "run": run.root.uri, "to": target.uri, **found}
        names = sorted({*folder.names(), MANIFEST})
        (folder / MANIFEST).write_json(
            {"finished": True, "names": names, "schema": run.schema.model_dump(mode="json"), **metrics}
        )
    if settings.push:
        metrics["pushed"] = push(
            target, settings.push, "model" if settings.what in MODELS else "dataset", settings.private
        )
    return metrics


def _write(run: Run, settings: Export, folder: Storage) -> Metrics:
    if settings.what == "policy" or settings.what == "predictor":
        name = settings.push or Storage(settings.to).uri.removeprefix("file://")
        return write_model(
            run, WantedModel(settings.what, settings.round, settings.license, settings.datasets, name), folder
        )
    wanted = WantedRows(
        settings.what,
        settings.round,
        settings.format or "messages",
        settings.values,
        settings.only_rated,
        settings.license,
    )
    return write_rows(run, wanted, folder)


def _require_free(target: Storage) -> None:
    """Raise StageError if anything lies there that no earlier export put there."""
    names = {target.uri} if target.fs.isfile(target.path) else set(target.names())
    if MANIFEST in names:
        manifest = (target / MANIFEST).read_json()
        names = names - set(manifest.get("names", names))
    if names:
        raise StageError(
            f"to is {target.uri}, where {min(names)} is no part of an earlier export; name another folder, or empty this one"
        )


def main() -> None:
    program = "python -m jobs.export"
    settings, _ = command_line(Export, sys.argv[1:], program, __doc__ or "")
    with user_errors_reported(program, "the same command makes the folder anew"):
        result = export(Run(settings), settings)
    print_last_line(result)


if __name__ == "__main__":
    main()
