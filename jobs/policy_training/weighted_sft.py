"""Training of SteerLM 2.0: groups of answers in, a policy's model folder out; and the policy that gives log P(y|x)."""

from collections.abc import Sequence

import numpy as np

from actors.training.settings import LearnerSettings
from data.calibration import Calibration
from data.examples import Split, buckets_for
from data.loader import counts
from data.stage_metrics import KlMetrics, LossPoint, PolicyMetrics, TrainingMetrics
from data.storage import Storage
from jobs.pipelines.annotation import calibration, read_text_rater
from jobs.pipelines.tokenize import Tokenizing
from jobs.policy_training.conditioned_sft import train_policy
from jobs.reporting.figures_training import draw_losses
from jobs.reporting.model_card import write_card
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, fingerprint_of, log
from jobs.runner.start_models import base_uri


def train_groups(
    run: Run, what: str, groups: list[Storage], start: str, learner: LearnerSettings, folder: Storage
) -> PolicyMetrics:
    """Move the policy at `start` towards the weights of its answers, into the stage's `folder`."""
    from actors.modeling.response_policy import GroupTask  # all with torch
    from actors.training.group_examples import GroupExamples
    from jobs.pipelines.fit import example_spec, fit

    arguments = {"spec": example_spec(run, learner), "pack_tokens": learner.pack_tokens}
    tokenizing = Tokenizing(what, groups, GroupExamples, arguments, folder / "examples", fingerprint_of(folder))
    settings = run.preset.policy
    kept = calibration(run) if settings.spread_labels else Calibration()
    task = GroupTask(start, run.schema, run.preset.template, kept, read_text_rater(run))
    split = Split(buckets_for(settings.validation_share))
    with tokenizing.meanwhile(learner) as examples:
        training = fit(what, task, learner, examples, folder, split, tracking=run.preset.tracking)
    draw_losses({what: training}, folder / "loss.png")
    write_card(run, "policy", learner, training, folder / "model")
    kl = kl_of(training)
    held_out = "" if kl.held_out is None else f", on held-out prompts {kl.held_out:.3f}"
    log(f"{what}: KL(w'||b') {kl.first:.3f} -> {kl.last:.3f} nats{held_out}")
    return PolicyMetrics(training=training.without_curve(), counts=counts(folder / "examples"), kl=kl)


def kl_of(training: TrainingMetrics) -> KlMetrics:
    """How the loss of a training on groups went, which is their KL."""
    fifth = max(1, len(training.losses) // 5)
    first, last = _mean(training.losses[:fifth]), _mean(training.losses[-fifth:])
    return KlMetrics(first=first, last=last, held_out=training.validation_loss)


def _mean(points: Sequence[LossPoint]) -> float:
    return round(float(np.mean([point.loss for point in points])), 4)


def train_unconditional(run: Run, folder: Storage) -> PolicyMetrics:
    """Plain fine-tuning on all annotated rows, without labels: the policy that gives log P(y|x)."""
    changes = {"labels": "none", "spread_labels": False, "label_probes": 0}
    plain = run.preset.model_copy(update={"policy": run.preset.policy.model_copy(update=changes)})
    rows = [run.folder("annotated") / "rows"]
    return train_policy(Run(plain), "unconditional", rows, base_uri(run), plain.policy.learner, folder)


def unconditional_settings(preset: Preset) -> object:
    return {"policy": preset.policy, "template": preset.template, "seed": preset.seed}
