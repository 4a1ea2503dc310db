"""A run folder with finished models, without any training, and exports of it."""

import json
import shutil
from pathlib import Path

from cluster.settings.load import load
from jobs.export import Export, export
from jobs.runner.stage import Metrics, Run

DEMO = str(Path(__file__).resolve().parents[2] / "jobs" / "presets" / "demo.yaml")
TRAINING = {
    "examples": 10,
    "epochs": 2,
    "steps": 5,
    "tokens": 99,
    "saved_step": 4,
    "validation_loss": 0.25,
    "losses": [{"step": 5, "loss": 0.5}],
}
CALIBRATION = {"scale": {"humor": 2.0}, "shift": {"humor": -0.5}}


def put_model(root: Path, kind: str, model: str) -> None:
    """Finish stage `kind` of the run at `root` with a copy of the folder `model`."""
    shutil.copytree(model, root / kind / "model")
    (root / kind / "training.json").write_text(json.dumps(TRAINING))
    finish(root / kind, {"calibration": CALIBRATION})


def finish(stage: Path, metrics: Metrics | None = None) -> None:
    (stage / "manifest.json").write_text(
        json.dumps({"stage": stage.name, "fingerprint": "f", "metrics": metrics or {}})
    )


def export_to(storage: Path, to: Path, *words: str) -> Metrics:
    """`python -m jobs.export demo.yaml` with these words, in this process."""
    settings = load(Export, DEMO, [f"storage={storage}", f"to={to}", *words])
    return export(Run(settings), settings)


def exported(kind: str, model: str, folder: Path) -> str:
    """What `jobs.export` makes of the folder `model`."""
    put_model(folder / "runs" / "demo", kind, model)
    export_to(folder / "runs", folder / "exported", f"what={kind}")
    return str(folder / "exported")
