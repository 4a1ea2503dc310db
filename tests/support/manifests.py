"""Finished stages that nothing ran: whole manifests, and plausible records to put into them."""

from collections.abc import Mapping
from typing import Any

from data.run_layout import MANIFEST, M, Manifest, as_json, write_record
from data.stage_metrics import (
    CheckpointMetrics,
    Drift,
    LossPoint,
    PolicyMeasures,
    PromotionMetrics,
    StageMetrics,
    TrainingMetrics,
)
from data.steering_metrics import CrossTalk, ReportMetrics
from data.storage import Storage
from jobs.runner.stage import Performed


def manifest(stage: str, metrics: StageMetrics | None = None, fingerprint: str = "f") -> Manifest:
    """Whole; without `metrics`: of a stage whose metrics nobody reads."""
    return Manifest(
        stage=stage,
        fingerprint=fingerprint,
        description={"needs": {"rows": "0" * 16}},
        metrics=as_json(metrics or StageMetrics()),
        seconds=12.5,
        finished="2026-11-22T12:00:00Z",
        versions={"ray": "2.60.0"},
    )


def finish(run: Storage, stage: str, metrics: StageMetrics | None = None) -> None:
    """Leave a manifest in the folder `stage` of the run's folder."""
    write_record(run / stage / MANIFEST, manifest(stage, metrics))


def metrics_of(performed: Performed, kind: type[M]) -> M:
    """The record that a stage left; it must have had something to do."""
    found = performed.manifest.read_as(kind)
    assert found is not None, f"{performed.manifest.stage} did nothing"
    return found


def training(**changes: Any) -> TrainingMetrics:
    """A short training with one validation."""
    found: dict[str, Any] = {
        "zero_stage": 2,
        "num_workers": 2,
        "steps": 5,
        "epochs": 2,
        "examples": 10,
        "tokens": 99,
        "packs_filled": 0.9,
        "target_weight": 50.0,
        "held_bytes": {"weights": 400, "gradients": 200, "optimizer": 600},
        "tokens_per_s": 33.0,
        "train_seconds": 3.0,
        "peak_memory_bytes": 10**9,
        "checkpoints": CheckpointMetrics(written=1, failed=0, blocked_s=0.1, upload_s=0.2),
        "saved_step": 4,
        "validation_loss": 0.25,
        "validations": (LossPoint(step=4, loss=0.25),),
        "losses": (LossPoint(step=5, loss=0.5),),
    }
    return TrainingMetrics(**found | changes)


def measures(
    spearman: float = 0.9, gap: float = 0.2, distinct_2: float = 0.3, means: Mapping[str, float] | None = None
) -> PolicyMeasures:
    """A policy as a promotion sees it; `means`: of predicted and true values."""
    both = dict(means or {})
    drift = Drift(texts=40, words=31.5, distinct_1=0.2, distinct_2=distinct_2, predicted=both, true=both)
    return PolicyMeasures(
        mean_spearman=spearman,
        spearman={"humor": spearman},
        at_best_settings={"helpfulness": 4 - gap},
        leading_gap_at_best=gap,
        measured_by="exactly",
        drift=drift,
        best_drift=drift,
    )


def promotion(policy: str, *fell: str) -> PromotionMetrics:
    """The decision for `policy`; promoted unless something fell."""
    return PromotionMetrics(
        before=measures(), after=measures(), promoted=not fell, fell=fell, policy=policy, counts={"questions": 8}
    )


def report(**changes: Any) -> ReportMetrics:
    """A report of policy `policy` without a curve."""
    found: dict[str, Any] = {
        "policy": "runs/demo/policy",
        "policy_stage": "policy",
        "measured_by": "exactly",
        "steering": {},
        "at_best_settings": {},
        "requested_best": {},
        "cross_talk": CrossTalk(attributes=(), measured=(), slope=()),
    }
    return ReportMetrics(**found | changes)
