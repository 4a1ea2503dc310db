"""What lies in a model folder: Hugging Face weights, config and tokenizer, with schema and template in `config.json`.

Any tool that reads Hugging Face folders can load it; `steerlm` in the config is what we need on top. Knows no training.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from actors.modeling.backbone import reading_of
from actors.modeling.tokenizer import TemplateKind, check_equality, make_template
from data.attributes import AttributeSchema
from data.errors import UserError
from data.storage import Storage
from data.template import SteerLMTemplate, Template, WrappedTemplate
from data.tokens import BackboneReading

logging.disable_progress_bar()  # workers load weights often, and a bar per load buries the lines that say how far a job is


@dataclass(frozen=True)
class Format:
    """Tokenizer and template of one checkpoint."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    kind: TemplateKind
    reading: BackboneReading
    """How a predictor on this backbone reads a conversation."""

    @property
    def schema(self) -> AttributeSchema:
        return self.template.schema


def local_folder(path: str) -> str:
    """A local folder for a path, a Hub name (returned as it is) or an fsspec URI (downloaded once for each content)."""
    if "://" not in path:
        return path
    storage = Storage(path)
    content = "".join(f"{file} {storage.fs.checksum(file)}" for file in storage.files())
    target = os.path.join(
        tempfile.gettempdir(), "steerlm-models", hashlib.sha256(f"{path} {content}".encode()).hexdigest()[:24]
    )
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
    format = _format(load_config(base), tokenizer, make_template(tokenizer, schema, kind), kind)
    check_equality(tokenizer, format.template)
    return format


def load_format(folder: str) -> Format:
    """The format stored with a checkpoint; raises UserError if the folder is no checkpoint of ours."""
    config = load_config(folder)
    steerlm = getattr(config, "steerlm", None)
    if steerlm is None:
        raise UserError(
            f"{folder} has no `steerlm` entry in config.json, so it was not written by this project; name a model folder of a run"
        )
    tokenizer = load_tokenizer(folder)
    schema = AttributeSchema.model_validate(steerlm["schema"])
    return _format(
        config,
        tokenizer,
        make_template(tokenizer, schema, steerlm["template"], steerlm["base_chat_template"]),
        steerlm["template"],
    )


def _format(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, template: Template, kind: TemplateKind
) -> Format:
    reading = reading_of(config, tokenizer)
    if not reading.causal and isinstance(template, SteerLMTemplate):
        # [CLS] frames every segment anew, also where the front of the conversation was cut: it is the reading's, not the template's.
        template = replace(template, bos="")
    return Format(tokenizer, template, kind, reading)


def load_config(folder: str) -> PreTrainedConfig:
    """Raises UserError naming the folder if there is no readable model there."""
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"no readable model at {folder}: {str(error).splitlines()[0]}") from None


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Raises UserError naming the folder if there is no readable tokenizer there."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"no readable tokenizer at {folder}: {str(error).splitlines()[0]}") from None


def steerlm_entry(format: Format) -> dict[str, Any]:
    """What goes into `config.steerlm`."""
    base = format.template.base if isinstance(format.template, WrappedTemplate) else None
    return {"schema": format.schema.model_dump(mode="json"), "template": format.kind, "base_chat_template": base}


def save_format(format: Format, folder: str, labels: bool) -> None:
    """Save the tokenizer with the exported chat template; `labels=False` (the predictor) leaves the label lines out and frames as an encoder reads."""
    source = format.template.jinja()
    if not labels:
        before, after = (_literal(format.tokenizer, ids) for ids in (format.reading.before, format.reading.after))
        source = f"{{%- set attributes = {{}} -%}}{before}{source}{after}"
    format.tokenizer.chat_template = source
    format.tokenizer.save_pretrained(folder)


def _literal(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """Jinja that writes the tokens `ids`; nothing for none."""
    return "".join(f"{{{{- {tokenizer.convert_ids_to_tokens(i)!r} -}}}}" for i in ids)
