"""Stage `policy`, step 3 of SteerLM: a run's first policy. Shared by `jobs.train_policy` and the ablation."""

from data.prompts import bootstrap_source
from data.stage_metrics import PolicyMetrics
from data.storage import Storage
from jobs.pipelines.source_weights import require_sources
from jobs.policy_training.conditioned_sft import train_policy
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage
from jobs.runner.start_models import base_uri


def work(run: Run, folder: Storage) -> PolicyMetrics:
    rounds = {bootstrap_source(number + 1) for number in range(run.preset.bootstrap.rounds)}
    require_sources("policy.source_weights", run.preset.policy.source_weights, run, rounds)
    rows = [run.folder("annotated") / "rows"]
    return train_policy(run, "policy", rows, base_uri(run), run.preset.policy.learner, folder)


def _settings(preset: Preset) -> object:
    return {"policy": preset.policy, "template": preset.template, "seed": preset.seed}


STAGE = Stage("policy", ("predictor", "annotated", "base"), _settings, work, resumes=True)
