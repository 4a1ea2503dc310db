"""A model folder: Hugging Face weights, config and tokenizer, with schema and template as `steerlm` in `config.json`.

Any tool that reads Hugging Face folders can load it. Knows no training.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from actors.modeling.backbone import reading_of
from actors.modeling.tokenizer import TemplateKind, check_equality, make_template
from data.attributes import AttributeSchema
from data.errors import UserError
from data.printable import printable
from data.storage import Storage
from data.template import SteerLMTemplate, Template, WrappedTemplate
from data.tokens import BackboneReading

logging.disable_progress_bar()  # workers load weights often, and a bar per load would bury a job's progress lines


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
    digest = hashlib.sha256(f"{path} {content}".encode()).hexdigest()[:24]
    target = os.path.join(tempfile.gettempdir(), "steerlm-models", digest)
    if not os.path.isdir(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # Several processes of a node may need it at once: each downloads to its own folder, the first rename wins.
        beside = storage.download(tempfile.mkdtemp(dir=os.path.dirname(target)))
        try:
            os.rename(beside, target)
        except OSError:
            shutil.rmtree(beside)
    return target


def new_format(base: str, schema: AttributeSchema, kind: TemplateKind) -> Format:
    """The format of a run that starts from `base`; raises UserError as `check_equality` does."""
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
            f"{folder} has no `steerlm` entry in config.json, so it was not written by this project; "
            "name a model folder of a run"
        )
    tokenizer = load_tokenizer(folder)
    schema = AttributeSchema.model_validate(steerlm["schema"])
    kind = steerlm["template"]
    return _format(config, tokenizer, make_template(tokenizer, schema, kind, steerlm["base_chat_template"]), kind)


def _format(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, template: Template, kind: TemplateKind
) -> Format:
    reading = reading_of(config, tokenizer)
    if not reading.causal and isinstance(template, SteerLMTemplate):
        # `reading` puts [CLS] before every segment, also where the front of the conversation was cut.
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


def fit_embeddings(model: PreTrainedModel, format: Format) -> None:
    """Give the embeddings a vector for every token of the tokenizer; never shrinks them."""
    if len(format.tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(format.tokenizer))


def save_model(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor], format: Format, folder: str, labels: bool
) -> None:
    """Save the weights in `state` (keys start with "model."), the config with schema and template, and the tokenizer.

    `labels=False`: the exported chat template writes no label lines, and frames a segment as an encoder reads it.
    """
    os.makedirs(folder, exist_ok=True)
    base = format.template.base if isinstance(format.template, WrappedTemplate) else None
    schema = format.schema.model_dump(mode="json")
    model.config.steerlm = {"schema": schema, "template": format.kind, "base_chat_template": base}
    model.config.pad_token_id = format.tokenizer.pad_token_id
    model.config.use_cache = True
    if model.can_generate():
        make_consistent(model)
    weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    model.save_pretrained(folder, state_dict=weights)
    source = format.template.jinja()
    if not labels:
        before, after = (_literal(format.tokenizer, ids) for ids in (format.reading.before, format.reading.after))
        source = f"{{%- set attributes = {{}} -%}}{before}{source}{after}"
    format.tokenizer.chat_template = source
    format.tokenizer.save_pretrained(folder)


def make_consistent(model: PreTrainedModel) -> None:
    """Let `model.generation_config` be one that transformers saves; raises UserError if that takes more than a flag.

    Llama 2, Vicuna and their kin come with sampling settings beside `do_sample: false`.
    """
    config = model.generation_config
    try:
        config.validate(strict=True)
        return
    except ValueError:
        before, config.do_sample = config.do_sample, True
    where = f"generation_config.json of {model.name_or_path}"
    try:
        config.validate(strict=True)
    except ValueError as error:
        config.do_sample = before
        raise UserError(f"{where} cannot be saved again: {_issues(error)}; correct that file") from None
    print(f"warning: {where} has sampling settings without do_sample; the new model has do_sample: true", flush=True)


def _issues(error: ValueError) -> str:
    """The first of transformers' complaints, `field: reason`."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.startswith("- ")]
    return printable(next(iter(lines), str(error)), 200)


def _literal(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """Jinja that writes the tokens `ids`; nothing for none."""
    return "".join(f"{{{{- {tokenizer.convert_ids_to_tokens(i)!r} -}}}}" for i in ids)
