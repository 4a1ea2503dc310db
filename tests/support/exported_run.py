"""A run folder with finished models, without any training, and exports of it."""

import shutil
from pathlib import Path

from support.manifests import finish, training

from cluster.settings.load import load
from data.calibration import Calibration
from data.run_layout import TRAINING, write_record
from data.stage_metrics import PolicyMetrics, PredictorMetrics
from data.storage import Storage
from jobs.export import Export, export
from jobs.runner.stage import Metrics, Run

DEMO = str(Path(__file__).resolve().parents[2] / "jobs" / "presets" / "demo.yaml")
CALIBRATION = Calibration(scale={"humor": 2.0}, shift={"humor": -0.5})


def put_model(root: Path, kind: str, model: str) -> None:
    """Finish stage `kind` of the run at `root` with a copy of the folder `model`."""
    shutil.copytree(model, root / kind / "model")
    run, trained = Storage(str(root)), training()
    write_record(run / kind / TRAINING, trained)
    summary = trained.without_curve()
    policy = PolicyMetrics(training=summary, counts={})
    predictor = PredictorMetrics(
        training=summary, counts={}, labels={}, held_out={}, calibration=CALIBRATION, quality="", pairs={}
    )
    finish(run, kind, predictor if kind == "predictor" else policy)


def export_to(storage: Path, to: Path, *words: str) -> Metrics:
    """`python -m jobs.export demo.yaml` with these words, in this process."""
    settings = load(Export, DEMO, [f"storage={storage}", f"to={to}", *words])
    return export(Run(settings), settings)


def exported(kind: str, model: str, folder: Path) -> str:
    """What `jobs.export` makes of the folder `model`."""
    put_model(folder / "runs" / "demo", kind, model)
    export_to(folder / "runs", folder / "exported", f"what={kind}")
    return str(folder / "exported")
