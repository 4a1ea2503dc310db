"""Stage `policy`, step 3 of SteerLM: train a language model to answer at the attributes it is told.

python -m jobs.train_policy PRESET.yaml [key.path=value ...]
"""

from actors.modeling.policy import PolicyTask
from actors.training.examples import PolicyExamples
from actors.training.settings import LearnerSettings
from cluster.settings_mistakes import did_you_mean
from data.calibration import Calibration
from data.examples import Split
from data.feed import counts, sources
from data.prompts import bootstrap_source
from data.storage import Storage
from jobs.card import write_card
from jobs.command import main
from jobs.preset import Preset
from jobs.stage import Figures, Run, Stage, StageError, stamp_of
from jobs.tokenise import Tokenising
from jobs.training import base_uri, buckets_for, example_spec, fit


def train_policy(run: Run, what: str, rows: list[Storage], start: str, learner: LearnerSettings, folder: Storage) -> Figures:
    """Conditioned SFT on `rows`, from the weights at `start`, into the stage's `folder`."""
    settings = run.preset.policy
    arguments = {
        "spec": example_spec(run, learner),
        "labels": settings.labels,
        "calibration": calibration(run),
        "attribute_dropout": settings.attribute_dropout,
        "seed": run.preset.seed,
    }
    tokenising = Tokenising(what, rows, PolicyExamples, arguments, folder / "examples", stamp_of(folder))
    task = PolicyTask(start, run.schema, run.preset.template)
    split = Split(buckets_for(settings.validation_share))
    with tokenising.meanwhile(learner) as examples:
        training = fit(what, task, learner, examples, folder, split, settings.source_weights, run.preset.tracking)
    write_card(run, "policy", learner, training, folder / "model")
    return {"training": training, "counts": counts(folder / "examples")}


def calibration(run: Run) -> Calibration:
    """How predicted values become labels: as the predictor's held-out rows say, or as they are."""
    manifest = run.manifest("predictor")
    assert manifest is not None, "the predictor must be finished"
    measured = manifest["figures"].get("calibration")
    return Calibration.model_validate(measured) if measured and run.preset.policy.calibrate else Calibration()


def work(run: Run, folder: Storage) -> Figures:
    rows = run.folder("annotated") / "rows"
    known = sources(rows) | {bootstrap_source(number + 1) for number in range(run.preset.bootstrap.rounds)}
    for name in run.preset.policy.source_weights:
        if name not in known:
            have = ", ".join(sorted(known))
            raise StageError(f"policy.source_weights has {name!r}, from which no row comes{did_you_mean(name, sorted(known))}; there are {have}")
    return train_policy(run, "policy", [rows], base_uri(run), run.preset.policy.learner, folder)


def _settings(preset: Preset) -> object:
    return {"policy": preset.policy, "template": preset.template, "seed": preset.seed}


STAGE = Stage("policy", ("predictor", "annotated", "base"), _settings, work, resumes=True)

if __name__ == "__main__":
    main(__doc__, [STAGE])
