"""A model folder: Hugging Face weights, config and tokenizer, with schema and template as `steerlm` in `config.json`.

Any tool that reads Hugging Face folders can load it. Knows no training.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from actors.modeling.backbone import reading_of
from actors.modeling.model_cache import is_text_file, local_copy
from actors.modeling.settings import TemplateKind
from actors.modeling.tokenizer import check_equality, encoder, make_template
from data.attributes import AttributeSchema
from data.calibration import Calibration
from data.errors import UserError
from data.printable import printable
from data.storage import Storage
from data.template import SteerLMTemplate, Template
from data.text_rater import TextRater
from data.tokens import BackboneReading
from data.words_template import WordsTemplate
from data.wrapped_template import WrappedTemplate

VOCABULARY_MULTIPLE = 64
"""Matrix products on a GPU are fast where their sizes are multiples of this; Llama 3.1 grows to 128,257 tokens."""
PADDED_VOCABULARY = 16_384
"""A vocabulary of fewer tokens is not padded."""
VOCABULARY = "num_vocabulary_tokens"
"""Attribute of a model whose vocabulary is padded: its size without the padding."""
LONGEST_REASON = 240
"""Characters of a library's own sentence in ours."""

logging.disable_progress_bar()  # workers load weights often, and a bar per load would bury a job's progress lines


@dataclass(frozen=True)
class Format:
    """Tokenizer and template of one checkpoint."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    kind: TemplateKind
    reading: BackboneReading
    """How a predictor on this backbone reads a conversation."""
    calibration: Calibration = field(default_factory=Calibration)
    """Of a policy: how measured values stand on the scale of its labels."""
    text_rater: TextRater = field(default_factory=TextRater)
    """Of a policy: which of its labels are measures of the text."""

    @property
    def schema(self) -> AttributeSchema:
        return self.template.schema


def local_folder(path: str) -> str:
    """A local folder for a path, a Hub name (returned as it is) or an fsspec URI (downloaded once a node, for each
    content). Raises UserError if there is no model, or one whose weights are no safetensors."""
    if "://" not in path:
        return path
    _require_safetensors(path, Storage(path).names(), "AutoModel")
    return local_copy(Storage(path))


def text_folder(path: str) -> str:
    """The same with configuration and tokenizer only, for those who read no weights."""
    return local_copy(Storage(path), is_text_file) if "://" in path else path


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
    return stored_format(config, load_tokenizer(folder), steerlm)


def stored_format(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, steerlm: Mapping[str, Any]) -> Format:
    """What the entry `steerlm` of a config.json describes; missing control tokens are added to `tokenizer`."""
    schema = AttributeSchema.model_validate(steerlm["schema"])
    kind, base, sentences = steerlm["template"], steerlm["base_chat_template"], steerlm.get("sentences")
    format = _format(config, tokenizer, make_template(tokenizer, schema, kind, base, sentences), kind)
    return replace(
        format,
        calibration=Calibration.model_validate(steerlm.get("calibration", {})),
        text_rater=TextRater.model_validate(steerlm.get("text_rater", {})),
    )


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
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no readable model at {folder}: {_reason(error)}") from None


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Raises UserError naming the folder if there is no readable tokenizer there."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no readable tokenizer at {folder}: {_reason(error)}") from None


def token_counter(path: str) -> Callable[[list[str]], list[float]]:
    """Counts the tokens of texts as the model at `path` reads them; raises UserError as `load_tokenizer`."""
    encode = encoder(load_tokenizer(text_folder(path)))
    return lambda texts: [float(len(encode(text))) for text in texts]


def load_weights(auto: Any, folder: str, what: str, **options: Any) -> PreTrainedModel:
    """The model in `folder` by a class of transformers: safetensors only, and no code that comes with the model.

    With `state_dict` and `config` among the options these are loaded, and not what the folder has. Raises UserError
    naming the folder if there is no such model; `what` says which one was wanted.
    """
    _require_safetensors(folder, os.listdir(folder) if os.path.isdir(folder) else [], auto.__name__)
    source = None if "state_dict" in options else folder
    try:
        model: PreTrainedModel = auto.from_pretrained(source, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"no readable {what} at {folder}: {_reason(error)}") from None
    return model


def _require_safetensors(folder: str, names: Iterable[str], auto: str) -> None:
    """Raise UserError for a folder of these files that has weights, but none that are read without running code."""
    names = sorted(names)
    pickled = [
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")) and name != "training_args.bin"
    ]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{folder} has its weights in {pickled[0]}, which can run code, and only safetensors are read; where you "
            f"trust the file: `from transformers import {auto}; {auto}.from_pretrained(FOLDER, use_safetensors=False)"
            ".save_pretrained(FOLDER)`"
        )


def _reason(error: Exception) -> str:
    """Why transformers reads no model, on one line, without its advice to run what is in the folder."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            "it needs code of its own (auto_map in its config.json), which is never run; name a model that "
            "transformers knows"
        )
    return printable((text.splitlines() or [type(error).__name__])[0], LONGEST_REASON)


def fit_embeddings(model: PreTrainedModel, format: Format, padded: bool = False) -> None:
    """Give the embeddings a vector for every token of the tokenizer; never shrinks them.

    `padded`: a large vocabulary that must grow grows to a multiple of VOCABULARY_MULTIPLE. What is above the
    tokenizer's size has no part in the loss (`vocabulary_size`) and is not saved, so nothing can ever sample it. A
    small vocabulary gains nothing, and stays as it is: more vectors would draw other random numbers.
    """
    num_tokens = len(format.tokenizer)
    if num_tokens <= model.config.get_text_config().vocab_size:
        return
    if padded and num_tokens >= PADDED_VOCABULARY:
        model.resize_token_embeddings(num_tokens, pad_to_multiple_of=VOCABULARY_MULTIPLE)
        setattr(model, VOCABULARY, num_tokens)
    else:
        model.resize_token_embeddings(num_tokens)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Entries of the vocabulary without what `fit_embeddings` added to reach a multiple."""
    return int(getattr(model, VOCABULARY, 0) or model.config.get_text_config().vocab_size)


def save_model(
    model: PreTrainedModel,
    state: Mapping[str, torch.Tensor],
    format: Format,
    folder: str,
    labels: bool,
    entries: Mapping[str, Any] | None = None,
) -> None:
    """Save the weights in `state` (keys start with "model."), the config with schema and template, and the tokenizer.

    `labels=False`: the exported chat template writes no label lines, and frames a segment as an encoder reads it.
    `entries` go beside schema and template.
    """
    os.makedirs(folder, exist_ok=True)
    base = format.template.base if isinstance(format.template, WrappedTemplate) else None
    schema = format.schema.model_dump(mode="json")
    model.config.steerlm = {"schema": schema, "template": format.kind, "base_chat_template": base, **(entries or {})}
    if isinstance(format.template, WordsTemplate):
        model.config.steerlm["sentences"] = format.template.sentences
    if format.calibration != Calibration():
        model.config.steerlm["calibration"] = format.calibration.model_dump(mode="json")
    if format.text_rater != TextRater():
        model.config.steerlm["text_rater"] = format.text_rater.model_dump(mode="json")
    model.config.pad_token_id = format.tokenizer.pad_token_id
    model.config.use_cache = True
    if model.can_generate():
        make_consistent(model)
    weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    with _without_padding(model, weights):
        model.save_pretrained(folder, state_dict=weights)
    source = format.template.jinja()
    if not labels:
        before, after = (_literal(format.tokenizer, ids) for ids in (format.reading.before, format.reading.after))
        source = f"{{%- set attributes = {{}} -%}}{before}{source}{after}"
    format.tokenizer.chat_template = source
    format.tokenizer.save_pretrained(folder)


def cut_padding(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Cut the padding of the vocabulary off what `weights` has of it, by the names of `model`'s parameters."""
    size = vocabulary_size(model)
    if size == model.config.get_text_config().vocab_size:
        return
    layers = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    cut: dict[int, torch.Tensor] = {}  # tied weights stay one tensor, so that they are saved once
    for name, module in model.named_modules(remove_duplicate=False):
        for key in (f"{name}.weight", f"{name}.bias") if id(module) in layers else ():
            if key in weights:
                weights[key] = cut.setdefault(weights[key].data_ptr(), weights[key][:size].clone())


@contextmanager
def _without_padding(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Cut the padding of the vocabulary off `weights`, and off the config within this context."""
    config, size = model.config.get_text_config(), vocabulary_size(model)
    padded = config.vocab_size
    if size == padded:
        yield
        return
    cut_padding(model, weights)
    config.vocab_size = size
    try:
        yield
    finally:
        config.vocab_size = padded


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
