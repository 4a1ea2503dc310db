"""The contents of models that a run reads from elsewhere: part of the inputs of the stages that read them.

A folder's or a URI's content is compared by the files that a model is loaded from, a GGUF file by itself; a name of
the hub stands for one model. What is big is read once: an index in the stage's folder says which checksum a file had in
which state.
"""

import os
from collections.abc import Mapping

from actors.modeling.model_cache import is_model_file
from data.errors import UserError
from data.source_checksums import CheckedSource, Known, checked, checked_folder
from data.storage import Storage

INDEX = "models.json"
"""In the folder of the stage that read them: file -> its state and checksum. No table: those are a stage's output."""


def with_content(models: Mapping[str, str]) -> dict[str, str]:
    """Those that are a folder, a file or a URI."""
    return {name: model for name, model in models.items() if "://" in model or os.path.exists(model)}


def checked_models(models: Mapping[str, str], folder: Storage) -> dict[str, CheckedSource]:
    """The files of those that `with_content` names; those that the index in `folder` knows are not read again."""
    found = with_content(models)
    known = _read_index(folder) if found else {}
    return {name: _checked(model, known) for name, model in found.items()}


def _checked(model: str, known: Known) -> CheckedSource:
    return checked(model, known=known) if os.path.isfile(model) else checked_folder(model, is_model_file, known)


def write_index(models: Mapping[str, CheckedSource], folder: Storage) -> None:
    """Of what is on a disk: a store lists its own checksums."""
    rows = [row for model in models.values() for row in model.table().to_pylist() if row["state"]]
    if rows:
        (folder / INDEX).write_json({row["file"]: [row["state"], row["checksum"]] for row in rows})


def _read_index(folder: Storage) -> Known:
    """Empty if there is none, or none that can be read: then all files are read once more."""
    try:
        content = (folder / INDEX).read_json()
        return {(file, state): checksum for file, (state, checksum) in content.items()}
    except (OSError, UserError, AttributeError, TypeError, ValueError):
        return {}
