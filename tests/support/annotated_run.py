"""A run folder ready for annotation without any training: a preset's rows and a predictor of random weights."""

from pathlib import Path
from typing import Any

from support.finished_run import predictor_metrics

from cluster.settings.load import load
from data.attributes import shipped
from data.run_layout import MODEL
from data.stage_metrics import PredictorMetrics
from data.storage import Storage
from jobs.prepare import STAGE as ROWS
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, perform

PRESETS = Path(__file__).resolve().parents[2] / "jobs" / "presets"


def ready(storage: str, predictor: str, *overrides: str, preset: str = "demo") -> Run:
    """Stages `rows` and `predictor` performed, the latter by copying the folder `predictor`."""
    run = Run(load(Preset, str(PRESETS / f"{preset}.yaml"), [f"storage={storage}", *overrides]))
    perform(run, ROWS)
    perform(run, predictor_stage(predictor))
    return run


def predictor_stage(predictor: str) -> Stage:
    def work(run: Run, folder: Storage) -> PredictorMetrics:
        (folder / MODEL).upload(predictor)
        return predictor_metrics({})

    return Stage("predictor", ("rows",), lambda preset: {"from": predictor}, work)


def annotator_arguments(predictor: str) -> dict[str, Any]:
    """Of a small Annotator of the synthetic world."""
    return {
        "predictor": predictor,
        "schema": shipped("lab"),
        "fingerprint": "f",
        "pack_tokens": 1024,
        "max_tokens": 512,
        "dtype": "float32",
        "num_threads": 1,
    }
