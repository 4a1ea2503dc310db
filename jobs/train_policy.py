"""Stage `policy`, step 3 of SteerLM: train a language model to answer at requested attribute values.

python -m jobs.train_policy PRESET.yaml [key.path=value ...]
"""

from cluster.settings.errors import did_you_mean
from data.loader import sources
from data.prompts import bootstrap_source
from data.stage_metrics import PolicyMetrics
from data.storage import Storage
from jobs.pipelines.fit import base_uri
from jobs.policy_training.conditioned_sft import train_policy
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage, StageError


def work(run: Run, folder: Storage) -> PolicyMetrics:
    rows = run.folder("annotated") / "rows"
    known = sources(rows) | {bootstrap_source(number + 1) for number in range(run.preset.bootstrap.rounds)}
    for name in run.preset.policy.source_weights:
        if name not in known:
            have = ", ".join(sorted(known))
            raise StageError(
                f"policy.source_weights has {name!r}, but no row has this source{did_you_mean(name, sorted(known))}; "
                f"the sources are {have}"
            )
    return train_policy(run, "policy", [rows], base_uri(run), run.preset.policy.learner, folder)


def _settings(preset: Preset) -> object:
    return {"policy": preset.policy, "template": preset.template, "seed": preset.seed}


STAGE = Stage("policy", ("predictor", "annotated", "base"), _settings, work, resumes=True)

if __name__ == "__main__":
    main(__doc__, [STAGE])
