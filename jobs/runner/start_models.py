"""The models that a run starts from, as its stages find them. Reads none of them."""

import os

from actors.modeling.gguf_file import is_gguf
from jobs.runner.stage import Run


def base_uri(run: Run) -> str:
    """The model that predictor and policy start from: the preset's, or the one that stage `base` made of it."""
    model = run.preset.base.model
    if model is None or is_gguf(model):
        return (run.folder("base") / "model").uri
    return _absolute(model)


def _absolute(model: str) -> str:
    # Workers run in other folders, so a relative path must become absolute here; a hub name is no path.
    return os.path.abspath(model) if os.path.isdir(model) else model


def backbone_uri(run: Run) -> str:
    """The model that the predictor starts from: its own, or the one all start from."""
    backbone = run.preset.predictor.backbone
    return _absolute(backbone) if backbone else base_uri(run)
