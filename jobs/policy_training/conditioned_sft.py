"""Attribute-conditioned SFT (arXiv 2310.05344, section 3.3): rows in, a policy's model folder out.

Shared by stage `policy`, the bootstrap rounds and the ablation.
"""

from typing import Any

from actors.training.settings import LearnerSettings
from data.calibration import Calibration
from data.examples import Split, buckets_for
from data.loader import counts
from data.stage_metrics import PolicyMetrics
from data.storage import Storage
from jobs.pipelines.annotation import calibration, endpoint_rater
from jobs.pipelines.tokenize import Tokenizing
from jobs.policy_training.label_probes import label_probes, log_label_use
from jobs.reporting.figures_training import draw_losses
from jobs.reporting.model_card import write_card
from jobs.runner.stage import Run, fingerprint_of


def train_policy(
    run: Run, what: str, rows: list[Storage], start: str, learner: LearnerSettings, folder: Storage
) -> PolicyMetrics:
    """Conditioned SFT on `rows`, from the weights at `start`, into the stage's `folder`."""
    from actors.modeling.policy import PolicyTask  # all with torch: a command that trains nothing starts without
    from actors.training.examples import PolicyExamples
    from jobs.pipelines.fit import example_spec, fit

    settings, as_label = run.preset.policy, calibration(run)
    arguments: dict[str, Any] = {
        "spec": example_spec(run, learner),
        "labels": settings.labels,
        "calibration": as_label,
        "attribute_dropout": settings.attribute_dropout,
        "seed": run.preset.seed,
    }
    tokenizing = Tokenizing(what, rows, PolicyExamples, arguments, folder / "examples", fingerprint_of(folder))
    kept = as_label if settings.spread_labels else Calibration()
    task = PolicyTask(start, run.schema, run.preset.template, kept, endpoint_rater(run))
    split = Split(buckets_for(settings.validation_share))
    probes = label_probes(PolicyExamples(**arguments), rows, split, settings.label_probes)
    with tokenizing.meanwhile(learner) as examples:
        weights, tracking = settings.source_weights, run.preset.tracking
        training = fit(what, task, learner, examples, folder, split, weights, tracking, probes)
    log_label_use(what, training)
    draw_losses({what: training}, folder / "loss.png")
    write_card(run, "policy", learner, training, folder / "model")
    return PolicyMetrics(training=training.without_curve(), counts=counts(folder / "examples"))
