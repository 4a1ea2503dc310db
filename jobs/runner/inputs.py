"""What a run starts from: its storage, its sources, its models. What is not there is refused before anything starts."""

import os
import re

from actors.modeling.gguf_file import gguf_file, is_gguf
from actors.scoring import hatesonar
from data.benchmarks import read_questions
from data.errors import UserError, is_user_error
from data.iceberg import ICEBERG
from data.printable import printable
from data.rater_settings import HfRaterSettings
from data.source_files import files_of
from data.storage import Storage
from data.uris import require_installed, shown_uri
from jobs.runner.preset import Preset

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def refuse_what_is_not_there(preset: Preset) -> None:
    """Raise UserError, naming the setting, for storage that cannot be, and a model or witness that is not there."""
    for setting, uri in _uris(preset).items():
        try:
            require_installed(uri)
        except UserError as error:
            raise UserError(f"{setting}: {error}") from None
    _require_a_folder(Storage(preset.storage))
    if preset.base.model:
        _require_model("base.model", preset.base.model)
    if preset.predictor.backbone:
        _require_model("predictor.backbone", preset.predictor.backbone)
    for number, rater in enumerate(preset.annotate.raters):
        if isinstance(rater, HfRaterSettings):
            _require_model(f"annotate.raters.{number}.model", rater.model)
    if "hatesonar" in (preset.evaluate.witnesses or ()) and (reason := hatesonar.missing()):
        raise UserError(f"evaluate.witnesses has hatesonar, and {reason}, or take it out")
    if preset.compare.questions:
        _require_questions(preset.compare.questions)
    if preset.bootstrap.steerlm2.responses:
        _require_responses(preset.bootstrap.steerlm2.responses)


def _require_questions(uri: str) -> None:
    """Now, and not after hours of training."""
    try:
        read_questions(uri)
    except OSError:
        raise UserError(
            f"compare.questions is {shown_uri(uri)}, but there is no such file; set it to a file of questions, or to "
            '"" for no comparison with the base model'
        ) from None


def _require_responses(uri: str) -> None:
    """Their content is read when a round is trained."""
    try:
        files_of(uri)
    except FileNotFoundError:
        raise UserError(
            f"bootstrap.steerlm2.responses is {shown_uri(uri)}, but there is no such file; set it to a file of "
            "NeMo-Aligner's SteerLM2 format, or leave it out"
        ) from None


def _uris(preset: Preset) -> dict[str, str]:
    models = {"base.model": preset.base.model or "", "predictor.backbone": preset.predictor.backbone or ""}
    sources = {f"rows.sources.{i}.uri": s.uri for i, s in enumerate(preset.rows.sources) if s.format != ICEBERG}
    raters = enumerate(preset.annotate.raters)
    models |= {f"annotate.raters.{i}.model": r.model for i, r in raters if isinstance(r, HfRaterSettings)}
    pairs = {f"predictor.pairs.{i}.uri": source.uri for i, source in enumerate(preset.predictor.pairs)}
    return {
        "storage": preset.storage,
        **sources,
        "compare.questions": preset.compare.questions,
        "base.texts": preset.base.texts,
        "bootstrap.steerlm2.responses": preset.bootstrap.steerlm2.responses,
        **models,
        **pairs,
    }


def _require_a_folder(storage: Storage) -> None:
    """The nearest folder that exists must be one, and be writable; an object store says so when it is written."""
    if not storage.is_local:
        return
    above = storage.path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    fix = "set storage to a folder of yours"
    if not os.path.isdir(above):
        raise UserError(f"storage is {shown_uri(storage.uri)}, but {shown_uri(above)} is no folder; {fix}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"storage is {shown_uri(storage.uri)}, but {shown_uri(above)} cannot be written; {fix}")


def _require_model(setting: str, model: str) -> None:
    """A folder must be there with its config, a GGUF file or package too; a name of the hub must look like one."""
    if setting == "base.model" and is_gguf(model):
        gguf_file(model)
        return
    named = f"{setting} is {shown_uri(model)}, but"
    fix = f"set {setting} to a folder with config.json, its URI, or a name of the hub (owner/name)"
    if "://" in model or os.path.exists(model):
        try:
            found = (Storage(model) / "config.json").exists()
        except Exception as error:
            if not is_user_error(error):
                raise
            raise UserError(f"{named} it cannot be read ({printable(str(error), 150)}); {fix}") from None
        if not found:
            raise UserError(f"{named} there is no config.json in it; {fix}")
    elif not HUB_NAME.fullmatch(model):
        raise UserError(f"{named} there is no such folder; {fix}")
