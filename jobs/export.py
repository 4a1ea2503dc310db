"""Export rows (for NeMo-Aligner, TRL, Hugging Face datasets) or a model of a finished run, as a folder or onto the hub.

    python -m jobs.export PRESET.yaml what=annotated to=URI [format=nemo] [values=labels] [push=owner/name]
    python -m jobs.export PRESET.yaml what=policy to=URI [license=apache-2.0] [push=owner/name]
    python -m jobs.export PRESET.yaml what=adapter to=URI [rank=16] [license=apache-2.0] [push=owner/name]

The folder appears whole, with `export.json` listing its content and what was left out. Starts no Ray.
"""

import os
import re
import sys
from typing import Literal

from pydantic import Field, model_validator

from cluster.masking import without_credentials
from cluster.settings.load import command_line
from data.bounds import Repeats, Width
from data.errors import UserError
from data.iceberg import NAME
from data.printable import printable
from data.storage import Storage
from data.uris import KeptUri
from jobs.exporting.adapter import RANK, WantedAdapter, write_adapter_folder
from jobs.exporting.hub import push, require_token
from jobs.exporting.iceberg import commit, require_iceberg
from jobs.exporting.models import WantedModel, write_model
from jobs.exporting.rows import ValueKind, WantedRows, write_rows
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.lease import held, lease_beside
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, StageError

MANIFEST = "export.json"
MODELS = ("policy", "predictor", "adapter")
UNFINISHED = re.compile(
    r"export\.json|README\.md|part-\d+\.(jsonl|parquet)"
    r"|(model|adapter|steerlm_adapter|heads|config|generation_config|tokenizer|special_tokens|added_tokens|chat_template|vocab|merges)[\w.-]*"
)
"""Files that a killed export may have left on an object store; on a disk it leaves none."""


class Export(Preset):
    """A run, the part to export, and the target."""

    what: Literal["rows", "annotated", "selected", "policy", "predictor", "adapter"]
    """rows = as people rated them; annotated = with predicted values; selected = kept samples of a bootstrap round; a
    model; or adapter = what a policy trained with LoRA adds to its base, and the predictor's heads: a few megabytes,
    which the endpoint serves."""
    to: KeptUri = Field(min_length=1)
    """The target folder, on any fsspec filesystem; an earlier export there is replaced, anything else is an error."""
    round: Repeats | None = None
    """The bootstrap round of selected, policy or adapter; None = the last samples, the promoted policy; 0 = the policy
    before them."""
    rank: Width | None = None
    """Rank of an adapter; None = 16. What a higher rank would hold is lost; the last line says how much is kept."""
    heads: bool = True
    """Of adapter: with the heads of the run's predictor, which must read layers of the base as they are."""
    format: Literal["messages", "nemo", "steerlm2", "parquet"] | None = None
    """Of rows: messages (OpenAI, TRL; JSONL; the default), nemo (NeMo-Aligner; JSONL), parquet (all columns); of
    selected, after a round of method steerlm2, also steerlm2 (NeMo-Aligner's prompts with weighed responses; JSONL)."""
    values: ValueKind | None = None
    """Of messages and nemo: human, predicted (raw), or labels (the policy's); None = human for rows, else labels."""
    only_rated: bool = False
    """Of messages and nemo: leave out, and count, rows without any value."""
    license: str = Field("other", pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """The hub's name of the license: your choice, within the licenses of the data and of the base model."""
    datasets: tuple[str, ...] = ()
    """Hub names of further data sets for the card; it lists sources at hf://datasets/ anyway."""
    iceberg: str = Field("", pattern=rf"^({NAME})?$")
    """catalog.namespace.table of an Iceberg table that gets the rows too, in one commit; empty = none. For format
    parquet; needs pyiceberg (the extra `lake`), which finds the catalog in .pyiceberg.yaml or in the environment."""
    push: str = ""
    """owner/name on the Hugging Face hub to upload to, with the token in $HF_TOKEN; empty = do not."""
    private: bool = True
    """Whether a repository that push creates is private."""

    @model_validator(mode="after")
    def _used(self) -> "Export":
        """Refuse settings that would be ignored."""
        rows = {"format": self.format, "values": self.values, "only_rated": self.only_rated or None}
        given = [name for name, value in rows.items() if value is not None]
        adapter = {"rank": self.rank, "heads": None if self.heads else False}
        unused = [name for name, value in adapter.items() if value is not None and self.what != "adapter"]
        if unused:
            raise UserError(f"{unused[0]} would be ignored: what is {self.what}, and it is about adapter; leave it out")
        if self.what in MODELS and given:
            raise UserError(
                f"{', '.join(given)} would be ignored: what is {self.what}, and it is about rows; leave it out"
            )
        if self.format in ("parquet", "steerlm2") and given != ["format"]:
            raise UserError(
                f"{', '.join(given[1:])} would be ignored: format is {self.format}, which has all rows and all values; "
                "leave it out, or take messages"
            )
        if self.format == "steerlm2" and self.what != "selected":
            raise UserError(
                f"format steerlm2 is of the samples of a round, but what is {self.what}; set it to selected"
            )
        if self.iceberg and self.format != "parquet":
            raise UserError(
                "iceberg would be ignored: a table has all columns of rows; set format to parquet, and what to rows, "
                "annotated or selected"
            )
        if self.round is not None and self.what not in ("selected", "policy", "adapter"):
            raise UserError(f"round would be ignored: what is {self.what}, of which a run has one; leave it out")
        if self.what == "selected" and self.round == 0:
            raise UserError("round is 0, before which nothing was sampled; set it to 1 or more")
        return self


def export(run: Run, settings: Export) -> Metrics:
    """Write the folder, and push it if `push` is set."""
    if settings.push:
        require_token(settings.push)
    if settings.iceberg:
        require_iceberg(settings.iceberg)
    target = Storage(settings.to)
    _require_free(target)
    with target.replaced() as folder:
        (folder / MANIFEST).write_json({"finished": False})
        found = _write(run, settings, folder)
        metrics: Metrics = {"what": settings.what, "run": run.root.uri, "to": target.uri, **found}
        names = sorted({*folder.names(), MANIFEST})
        finished = {"finished": True, "names": names, "schema": run.schema.model_dump(mode="json")}
        (folder / MANIFEST).write_json(finished | without_credentials(metrics))
    if settings.iceberg:
        metrics |= commit(settings.iceberg, target)
    if settings.push:
        kind: Literal["model", "dataset"] = "model" if settings.what in MODELS else "dataset"
        metrics["pushed"] = push(target, settings.push, kind, settings.private)
    return metrics


def _write(run: Run, settings: Export, folder: Storage) -> Metrics:
    name = settings.push or Storage(settings.to).uri.removeprefix("file://")
    if settings.what == "adapter":
        rank = RANK if settings.rank is None else settings.rank
        adapter = WantedAdapter(settings.round, rank, settings.heads, settings.license, settings.datasets, name)
        return write_adapter_folder(run, adapter, folder)
    if settings.what == "policy" or settings.what == "predictor":
        model = WantedModel(settings.what, settings.round, settings.license, settings.datasets, name)
        return write_model(run, model, folder)
    what, kind = settings.what, settings.format or "messages"
    rows = WantedRows(what, settings.round, kind, settings.values, settings.only_rated, settings.license)
    return write_rows(run, rows, folder)


def _require_free(target: Storage) -> None:
    """Raise StageError if `target` holds anything but an earlier export, or is a link to another folder."""
    if target.is_local and os.path.islink(target.path):
        raise StageError(
            f"to is {printable(target.uri, 200)}, a symbolic link, and an export replaces its folder; name the folder"
        )
    names = {target.uri} if target.fs.isfile(target.path) else set(target.names())
    if others := names - _earlier(target, names):
        raise StageError(
            f"to is {printable(target.uri, 200)}, where {printable(min(others))} is no part of an earlier export; "
            "name another folder, or empty this one"
        )


def _earlier(target: Storage, names: set[str]) -> set[str]:
    """Those of the names that an earlier export wrote, also one that was killed."""
    try:
        manifest = (target / MANIFEST).read_json() if MANIFEST in names else None
    except UserError:
        manifest = None  # somebody's own file of that name
    if not isinstance(manifest, dict) or not isinstance(manifest.get("finished"), bool):
        return set()
    if manifest["finished"]:
        return {MANIFEST, *manifest.get("names", ())}
    return {name for name in names if UNFINISHED.fullmatch(name)}


def main() -> None:
    program = "python -m jobs.export"
    settings, _ = command_line(Export, sys.argv[1:], program, __doc__ or "")
    again = "the same command writes the folder again"
    with user_errors_reported(program, again), held(lease_beside(Storage(settings.to)), program):
        result = export(Run(settings), settings)
    print_last_line(result)


if __name__ == "__main__":
    main()
