"""What lies in a model folder: Hugging Face weights, config and tokenizer, with schema and template in `config.json`.

Any tool that reads Hugging Face folders can load it; `steerlm` in the config is what we need on top. Knows no training.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from actors.tokenizer import TemplateKind, check_equality, make_template
from data.attributes import AttributeSchema
from data.storage import Storage
from data.template import Template, WrappedTemplate

logging.disable_progress_bar()  # workers load weights often, and a bar per load buries the lines that say how far a job is


@dataclass(frozen=True)
class Format:
    """Tokenizer and template of one checkpoint."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    kind: TemplateKind

    @property
    def schema(self) -> AttributeSchema:
        return self.template.schema


def local_folder(path: str) -> str:
    """A local folder for a path, a Hub name (returned as it is) or an fsspec URI (downloaded once for each content)."""
    if "://" not in path:
        return path
    storage = Storage(path)
    content = "".join(f"{file} {storage.fs.checksum(file)}" for file in storage.files())
    target = os.path.join(tempfile.gettempdir(), "steerlm-models", hashlib.sha256(f"{path} {content}".encode()).hexdigest()[:24])
    if not os.path.isdir(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # Several processes of a node may want it at once: each downloads beside, the first rename wins.
        beside = storage.download(tempfile.mkdtemp(dir=os.path.dirname(target)))
        try:
            os.rename(beside, target)
        except OSError:
            shutil.rmtree(beside)
    return target


def new_format(base: str, schema: AttributeSchema, kind: TemplateKind) -> Format:
    """The format of a run that starts from `base`, checked: what other engines will see is what we train."""
    tokenizer = load_tokenizer(base)
    template = make_template(tokenizer, schema, kind)
    check_equality(tokenizer, template)
    return Format(tokenizer, template, kind)


def load_format(folder: str) -> Format:
    """The format stored with a checkpoint; raises ValueError if the folder is no checkpoint of ours."""
    steerlm = getattr(load_config(folder), "steerlm", None)
    if steerlm is None:
        raise ValueError(f"{folder} has no `steerlm` entry in config.json, so it was not written by this project; name a model folder of a run")
    tokenizer = load_tokenizer(folder)
    schema = AttributeSchema.model_validate(steerlm["schema"])
    return Format(tokenizer, make_template(tokenizer, schema, steerlm["template"], steerlm["base_chat_template"]), steerlm["template"])


def load_config(folder: str) -> PreTrainedConfig:
    """Raises ValueError naming the folder if there is no readable model there."""
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"no readable model at {folder}: {str(error).splitlines()[0]}") from None


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Raises ValueError naming the folder if there is no readable tokenizer there."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"no readable tokenizer at {folder}: {str(error).splitlines()[0]}") from None


def steerlm_entry(format: Format) -> dict[str, Any]:
    """What goes into `config.steerlm`."""
    base = format.template.base if isinstance(format.template, WrappedTemplate) else None
    return {"schema": format.schema.model_dump(mode="json"), "template": format.kind, "base_chat_template": base}


def save_format(format: Format, folder: str, labels: bool) -> None:
    """Save the tokenizer with the exported chat template; `labels=False` (the predictor) leaves the label lines out."""
    source = format.template.jinja()
    format.tokenizer.chat_template = source if labels else "{%- set attributes = {} -%}" + source
    format.tokenizer.save_pretrained(folder)
