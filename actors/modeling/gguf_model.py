"""Models in one file (GGUF), read and converted to plain safetensors: dequantized to float32, without loss.

Knows no run.
"""

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from actors.modeling.gguf_file import gguf_file, kinds
from data.errors import UserError
from data.printable import printable

NOT_PLAIN = ("quantization_config", "_name_or_path", "transformers_version")
"""Entries of the config that tell where the weights came from: `save_pretrained` refuses the first."""


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
    return UserError(f"base.model is {printable(model)}, which cannot be read as GGUF: {reason}; {kinds()}")
