"""The models that a run starts from or rates with, as its stages find them. Reads none of them."""

import os

from actors.modeling.gguf_file import is_gguf
from data.rater_settings import HfRaterSettings
from jobs.runner.stage import Run


def base_uri(run: Run) -> str:
    """The model that predictor and policy start from: the preset's, or the one that stage `base` made of it."""
    return base_model(run).get("base.model") or (run.folder("base") / "model").uri


def _absolute(model: str) -> str:
    # Workers run in other folders, so a relative path must become absolute here; a hub name is no path.
    return os.path.abspath(model) if os.path.isdir(model) else model


def base_model(run: Run) -> dict[str, str]:
    """The preset's own model, by its setting; none if stage `base` makes one, also of a GGUF file."""
    model = run.preset.base.model
    return {} if model is None or is_gguf(model) else {"base.model": _absolute(model)}


def backbone_model(run: Run) -> dict[str, str]:
    """The predictor's own backbone, by its setting."""
    backbone = run.preset.predictor.backbone
    return {"predictor.backbone": _absolute(backbone)} if backbone else {}


def backbone_uri(run: Run) -> str:
    """The model that the predictor starts from: its own, or the one all start from."""
    return backbone_model(run).get("predictor.backbone") or base_uri(run)


def rater_models(run: Run) -> dict[str, str]:
    """The model of each `hf` rater, by the rater's name."""
    return {r.name: _absolute(r.model) for r in run.preset.annotate.raters if isinstance(r, HfRaterSettings)}
