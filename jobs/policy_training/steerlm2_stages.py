"""The stages of rounds of SteerLM 2.0: sample answers at one setting, rate, weigh, train on the weights, decide.

The policy that was sampled goes on training, so that its answers to a prompt get the shares they have in
P(y|a,x) ~ P(a|x,y) P(y|x) (HelpSteer2, arXiv 2406.08673, section 4.5).
"""

import hashlib
import itertools
from dataclasses import dataclass
from functools import partial

from data.prompts import bootstrap_source
from data.response_groups import group_prompts, groups_table, read_steerlm2, to_steerlm2
from data.stage_metrics import PolicyMetrics, SelectionMetrics
from data.storage import Storage
from jobs.evaluation.selection import Round
from jobs.pipelines.annotation import predictor_weights
from jobs.pipelines.map_rows import write_table
from jobs.policy_training.bootstrap_stages import (
    BootstrapStages,
    how_calibrated,
    promotion_settings,
    sampled_settings,
)
from jobs.policy_training.weighing import weigh
from jobs.policy_training.weighted_sft import train_groups, train_unconditional, unconditional_settings
from jobs.runner.preset import Preset
from jobs.runner.rounds import KINDS, Rounds, unconditional_stage
from jobs.runner.stage import Run, Stage

GIVEN = "given"
"""The source of groups that a file has."""


@dataclass(frozen=True)
class SteerLM2Stages(BootstrapStages):
    """As other rounds, but for how samples are planned, selected and trained on."""

    unconditional: str = "sft"
    """As `bootstrap.steerlm2.unconditional`."""
    plan = staticmethod(group_prompts)

    def stages(self, number: int) -> list[Stage]:
        """A round as five stages; before the first one, the policy that gives log P(y|x)."""
        before, free = self.rounds.policy(number - 1), self._free(number)
        samples, rated, selected, policy, promotion = (self.rounds.stage(number, kind) for kind in KINDS)
        more = {"resumes": True, "contents": predictor_weights}
        weighed = dict.fromkeys((samples, rated, "predictor", "annotated", before, free))
        train_needs = (selected, "predictor", "annotated", before, "base")
        stage = partial(self._stage, number)
        found = [
            stage(samples, ("predictor", "annotated", before), _sampled_settings, self._samples, resumes=True),
            stage(rated, (samples, "predictor"), lambda preset: {}, self._rated, **more),
            stage(selected, tuple(weighed), _weighing_settings, self._selected, resumes=True),
            stage(policy, train_needs, _training_settings, self._train, resumes=True, inputs=_responses),
            stage(promotion, (policy, before, "rows", "predictor"), promotion_settings, self._promotion),
        ]
        if number > 1 or self.unconditional == "policy":
            return found
        needs = ("predictor", "annotated", "base")
        return [Stage(free, needs, unconditional_settings, train_unconditional, resumes=True), *found]

    def _free(self, number: int) -> str:
        """The stage of the policy that gives log P(y|x)."""
        sampled = self.unconditional == "policy"
        return self.rounds.policy(number - 1) if sampled else unconditional_stage(self.rounds)

    def rows_per_file(self, preset: Preset) -> int:
        """No prompt's answers are divided."""
        each = preset.bootstrap.samples_per_prompt
        return max(each, preset.rows.rows_per_file // each * each)

    def _requested(self, run: Run, number: int) -> list[dict[str, int]]:
        target = run.preset.bootstrap.steerlm2.target
        return super()._requested(run, number) if target is None else [dict(target)]

    def _selected(self, run: Run, folder: Storage, number: int) -> SelectionMetrics:
        samples, rated = (self._folder(run, number, kind) for kind in ("samples", "rated"))
        sampled = Round(number, samples, rated, self.rounds.policy(number - 1))
        return weigh(run, sampled, run.folder(self._free(number)), folder)

    def _train(self, run: Run, folder: Storage, number: int) -> PolicyMetrics:
        """Train on the weighed samples, and on those of the file that the preset names."""
        groups = [self._folder(run, number, "selected") / "groups"]
        if uri := run.preset.bootstrap.steerlm2.responses:
            source = f"{bootstrap_source(number)}-{GIVEN}"
            given = iter(read_steerlm2(uri, run.schema, source))
            size = run.preset.rows.rows_per_file
            for part in itertools.count():
                if not (some := list(itertools.islice(given, size))):
                    break
                write_table(groups_table(some), folder / GIVEN, f"part-{part:05d}.parquet")
            groups.append(folder / GIVEN)
        before = run.folder(self.rounds.policy(number - 1)) / "model"
        what = f"bootstrap {number}: policy"
        return train_groups(run, what, groups, before.uri, run.preset.bootstrap.learner, folder)


def round_stages(preset: Preset, rounds: Rounds, number: int) -> list[Stage]:
    """The stages of a round by the preset's method."""
    if preset.bootstrap.method == "steerlm2":
        return SteerLM2Stages(rounds, preset.bootstrap.steerlm2.unconditional).stages(number)
    return BootstrapStages(rounds).stages(number)


def _sampled_settings(preset: Preset) -> object:
    return {"as_others": sampled_settings(preset), "method": "steerlm2", "target": preset.bootstrap.steerlm2.target}


def _weighing_settings(preset: Preset) -> object:
    return {
        "method": "steerlm2",
        "unfinished": preset.bootstrap.selection.unfinished,
        "max_tokens": preset.bootstrap.learner.max_tokens,
        "dtype": preset.sampling.pool.dtype,
        "calibrate": how_calibrated(preset),
        "lab": preset.rows.lab,
    }


def _training_settings(preset: Preset) -> object:
    names = {"spread_labels", "validation_share"}
    return {
        "method": "steerlm2",
        "learner": preset.bootstrap.learner,
        "policy": preset.policy.model_dump(include=names),
        "template": preset.template,
    }


def _responses(run: Run) -> dict[str, str]:
    """The content of the file of groups, if there is one."""
    uri, digest = run.preset.bootstrap.steerlm2.responses, hashlib.sha256()
    if not uri:
        return {}
    for group in read_steerlm2(uri, run.schema, GIVEN):
        digest.update(repr(to_steerlm2(group, run.schema)).encode())
    return {"responses": digest.hexdigest()[:16]}
