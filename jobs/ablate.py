"""Ablation: what does each step of the method add? Table 3 of the paper (arXiv 2310.05344), all arms on one budget.

    python -m jobs.ablate PRESET.yaml [seeds=3] [arms=[sft,human]] [key.path=value ...]

The arms: plain fine-tuning on the rated rows; conditioned on human values; only the best of those rows; conditioned on
predicted values instead, all rated rows; all sources, annotated; bootstrap rounds on top; and, as its control, as much
more training without any samples. The arm steerlm2, if named, has rounds of SteerLM 2.0 in place of the bootstrap
rounds, with as many prompts and as many answers trained on. Seeds draw the order of training, the questions and the
samples; all share the rows, base model and predictor of the run, and the seed of the run itself its policy and rounds.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from data.bounds import Positive, Times
from data.errors import UserError
from jobs import annotate, prepare, pretrain, train_predictor
from jobs.ablation.arms import ARMS, NEEDS, PAPER, STEERLM2, arm_stages, with_steerlm2
from jobs.ablation.report import PLOT, TABLE, report_stage
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Performed, Run, Stage


class Ablation(Preset):
    """A run, the arms to train, and the number of seeds."""

    seeds: Times = 3
    """Number of seeds, from 0, with which each arm is trained."""
    arms: tuple[str, ...] = PAPER
    """Arms to train; bootstrap and steerlm2 start from the policy of sources, longer trains as much as bootstrap did.
    steerlm2 = rounds by bootstrap.method steerlm2, and only if it is named."""
    steerlm2_learning_rate: Positive | None = None
    """Peak learning rate of arm steerlm2; None = bootstrap.learner.learning_rate."""

    @model_validator(mode="after")
    def _arms(self) -> "Ablation":
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or not self.arms:
            raise UserError(f"arms has {', '.join(unknown) or 'nothing'}; there are {', '.join(ARMS)}")
        for name, below in NEEDS.items():
            if name in self.arms and below not in self.arms:
                raise UserError(f"arms has {name}, which starts where {below} ends; add {below} to arms")
        rounds = [name for name in ("bootstrap", STEERLM2) if name in self.arms]
        if rounds and not self.bootstrap.rounds:
            raise UserError(
                f"arms has {rounds[0]}, but bootstrap.rounds is 0; "
                "set it to 1 or more, or leave bootstrap, longer and steerlm2 out of arms"
            )
        if self.bootstrap.method != "steerlm":
            raise UserError(
                f"bootstrap.method is {self.bootstrap.method}, but arm bootstrap is by method steerlm; leave method "
                "out, and add steerlm2 to arms"
            )
        if STEERLM2 in self.arms:
            with_steerlm2(self).require_steerlm2()
        elif self.steerlm2_learning_rate is not None:
            raise UserError(
                "steerlm2_learning_rate has no effect without arm steerlm2; add it to arms, or leave it out"
            )
        return self


def stages(preset: Preset) -> list[Stage]:
    assert isinstance(preset, Ablation)
    shared = [prepare.STAGE, pretrain.STAGE, train_predictor.STAGE, annotate.STAGE]
    names = [name for name in ARMS if name in preset.arms]
    arms = [stage for seed in range(preset.seeds) for name in names for stage in arm_stages(preset, name, seed)]
    return [*shared, *arms, report_stage(names, preset.seeds)]


def ending(run: Run, stages: Mapping[str, Performed]) -> dict[str, Any]:
    folder = run.folder("ablation/report")
    files = {"table": (folder / TABLE).uri, "plot": (folder / PLOT).uri}
    return {"run": run.root.uri, **stages["ablation/report"].manifest.metrics, **files}


if __name__ == "__main__":
    main(__doc__, stages, ending, Ablation)
