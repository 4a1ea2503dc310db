"""Export a model of a run: weights, tokenizer with the steering chat template, generation config, and a card.

Plain transformers, vLLM and our own endpoint load the folder alike. Knows no rows.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actors.training.settings import LearnerSettings
from data.run_layout import TRAINING, read_record
from data.stage_metrics import TrainingMetrics
from data.steering_metrics import ReportMetrics
from data.storage import Storage
from jobs.reporting.model_card import card
from jobs.runner.rounds import Rounds
from jobs.runner.stage import Metrics, Run, StageError, log

HF_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
CARD, GENERATION = "README.md", "generation_config.json"


@dataclass(frozen=True)
class WantedModel:
    """Which model of a run, and the facts for its card."""

    kind: Literal["policy", "predictor"]
    round: int | None
    license: str
    datasets: tuple[str, ...]
    name: str
    """What the card's example loads: a name on the hub, or the folder."""


def write_model(run: Run, wanted: WantedModel, folder: Storage) -> Metrics:
    """Fill `folder`; returns counts. Raises StageError if the stage is not finished, UserError if it holds no model
    of ours."""
    from actors.modeling.model_folder import load_format, text_folder  # both with torch
    from actors.modeling.policy import PolicyText

    stage = stage_of(run, wanted.kind, wanted.round)
    model = run.folder(stage) / "model"
    names = [name for name in model.names() if name not in (CARD, GENERATION)]
    if not any(name.endswith(".safetensors") for name in names):
        raise StageError(
            f"{model.uri} has no weights (*.safetensors); delete {run.folder(stage).uri} "
            "and run `python -m jobs.run` again"
        )
    local = text_folder(model.uri)
    schema = load_format(local).schema
    schema.require_same(run.schema, f"the {wanted.kind} at {model.uri}", "the run")
    for name in names:
        _copy(model / name, folder / name)
    if wanted.kind == "policy":
        (folder / GENERATION).write_json(PolicyText.load(local).generation())
    (folder / CARD).write_bytes(_card(run, wanted, stage).encode())
    files = {name: model.fs.size(f"{model.path}/{name}") for name in names}
    log(f"{stage}: {len(files)} files, {sum(files.values()):,} bytes, and a card")
    return {"stage": stage, "files": len(files), "bytes": sum(files.values())}


def _copy(source: Storage, target: Storage) -> None:
    """Copy a file; of a large model no more than one file is on the local disk at a time."""
    if source.is_local:
        target.put(source.path)
        return
    with tempfile.TemporaryDirectory(prefix="steerlm-export-") as beside:
        source.fs.get_file(source.path, f"{beside}/file")
        target.put(f"{beside}/file")


def stage_of(run: Run, kind: Literal["policy", "predictor"], round: int | None) -> str:
    """The stage whose model is wanted; raises StageError unless it is finished."""
    if kind == "predictor":
        name = "predictor"
    elif round is None:
        name = Rounds().promoted(run, run.preset.bootstrap.rounds)
    else:
        name = Rounds().policy(round)
    if run.manifest(name) is None or not (run.folder(name) / "model").exists():
        raise StageError(
            f"{name} is not finished in {run.root.uri}, so there is no model to export; "
            "run `python -m jobs.run` with the same preset first"
        )
    run.require_whole(name, "the export needs")
    return name


def _card(run: Run, wanted: WantedModel, stage: str) -> str:
    """The card that training writes, with the hub's front matter."""
    front = front_entries(run, wanted.license, wanted.datasets)
    report = report_about(run, stage) if wanted.kind == "policy" else None
    training = read_record(run.folder(stage) / TRAINING, TrainingMetrics)
    return card(run, wanted.kind, learner_of(run, wanted.kind, stage), training, report, front, wanted.name)


def front_entries(run: Run, license: str, datasets: Sequence[str]) -> Metrics:
    """What a card tells the hub of license and data."""
    found = [match[1] for source in run.preset.rows.sources if (match := HF_DATASET.match(source.uri))]
    named = list(dict.fromkeys([*found, *datasets]))
    return {"license": license} | ({"datasets": named} if named else {})


def report_about(run: Run, stage: str) -> ReportMetrics | None:
    """The run's report, if it is about the policy of `stage`, and not another round's."""
    report = run.metrics("report", ReportMetrics)
    return report if report and report.policy_stage == stage else None


def learner_of(run: Run, kind: Literal["policy", "predictor"], stage: str) -> LearnerSettings:
    """How the model of `stage` was trained."""
    if kind == "predictor":
        return run.preset.predictor.learner
    return run.preset.policy.learner if stage == "policy" else run.preset.bootstrap.learner
