"""The stages of bootstrap rounds: sample from the policy at its best settings, rate, select, train, decide.

Combinations are drawn uniformly from those in the annotated rows at the best value of the leading attribute. The next
policy is conditioned on the predicted values of the samples, not on the requested ones (arXiv 2310.05344, section 3.4).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.conversation import from_table, problem, to_table
from data.prompts import bootstrap_prompts, bootstrap_source, combinations_of, prompts_table
from data.stage_metrics import (
    AnnotationMetrics,
    NotRun,
    PolicyMetrics,
    PromotionMetrics,
    SamplesMetrics,
    SelectionMetrics,
    StageMetrics,
)
from data.storage import Storage
from jobs.evaluation.promotion import decide_promotion
from jobs.evaluation.selection import Round, select
from jobs.pipelines.annotation import annotate, calibration, predictor_weights
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample, sampling_settings
from jobs.policy_training.annotated_rows import seen_combinations, some_questions, some_rows
from jobs.policy_training.conditioned_sft import train_policy
from jobs.runner.preset import Preset
from jobs.runner.rounds import KINDS, Rounds
from jobs.runner.stage import Run, Stage, fingerprint_of, log
from jobs.runner.start_models import base_uri

SettingsOf = Callable[[Preset], object]
RoundWork = Callable[..., StageMetrics]
"""The work of a stage, given the run, its folder and, by name, the `number` of the round."""


@dataclass(frozen=True)
class BootstrapStages:
    """The rounds that follow one policy. After a round that is not promoted, the stages of later rounds do nothing."""

    rounds: Rounds = field(default_factory=Rounds)

    def stages(self, number: int) -> list[Stage]:
        """A round as five stages, so that a crash costs at most one of them."""
        before = self.rounds.policy(number - 1)
        samples, rated, selected, policy, promotion = (self.rounds.stage(number, kind) for kind in KINDS)
        policy_needs = (selected, "predictor", "annotated", before, "base")
        more = {"resumes": True, "contents": predictor_weights}
        stage = partial(self._stage, number)
        return [
            stage(samples, ("predictor", "annotated", before), sampled_settings, self._samples, resumes=True),
            stage(rated, (samples, "predictor"), lambda preset: {}, self._rated, **more),
            stage(selected, (samples, rated, "predictor", before), _selection_settings, self._selected),
            stage(policy, policy_needs, _training_settings, self._train, resumes=True),
            stage(promotion, (policy, before, "rows", "predictor"), promotion_settings, self._promotion),
        ]

    def _stage(
        self, number: int, name: str, needs: tuple[str, ...], settings: SettingsOf, work: RoundWork, **more: Any
    ) -> Stage:
        """A stage of round `number`, which does nothing if the round before was not promoted."""
        follows = (self.rounds.promotion(number - 1),) if number > 1 else ()
        unless_over = partial(self._unless_over, work=partial(work, number=number), number=number)
        return Stage(name, needs + follows, settings, unless_over, **more)

    def _unless_over(
        self, run: Run, folder: Storage, work: Callable[[Run, Storage], StageMetrics], number: int
    ) -> StageMetrics:
        last = self.rounds.decision(run, number - 1)
        if last is None or last.promoted:
            return work(run, folder)
        log(f"bootstrap {number}: not run, for round {number - 1} was not promoted")
        # The decision of the last promoted round still holds.
        return NotRun(not_run=last.fell, promoted=False, fell=last.fell, policy=last.policy)

    def _folder(self, run: Run, number: int, kind: str) -> Storage:
        return run.folder(self.rounds.stage(number, kind))

    def _samples(self, run: Run, folder: Storage, number: int) -> SamplesMetrics:
        """Plan the round and sample it; answers that are no turn (empty) are counted, not rated."""
        settings, seed = run.preset.bootstrap, run.preset.seed + number
        requested = self._requested(run, number)
        asked = some_questions(run.folder("annotated") / "rows", settings.num_prompts, seed)
        prompts = self.plan(asked, requested, settings.samples_per_prompt, seed, bootstrap_source(number))
        size = self.rows_per_file(run.preset)
        for part, start in enumerate(range(0, len(prompts), size)):
            table = prompts_table(prompts[start : start + size])
            write_table(table, folder / "prompts", f"part-{part:05d}.parquet")
        what, policy = f"bootstrap {number}: sample", run.folder(self.rounds.policy(number - 1))
        folders, temperature = (folder / "prompts", folder / "answers"), run.preset.sampling.temperature
        metrics = sample(run, what, policy, *folders, temperature, fingerprint_of(folder))
        reasons: Counter[str] = Counter()
        for part, table in enumerate((folder / "answers").tables()):
            kept = []
            for row in from_table(table):
                reason = problem(row.messages)
                reasons[reason or "kept"] += 1
                if not reason:
                    kept.append(row)
            write_table(to_table(kept, run.schema), folder / "rows", f"part-{part:05d}.parquet")
        return SamplesMetrics(
            **dict(metrics), combinations=tuple(requested), counts={"prompts": len(prompts), **reasons}
        )

    plan = staticmethod(bootstrap_prompts)
    """Questions, settings, answers for each question, seed, source -> prompts."""

    def rows_per_file(self, preset: Preset) -> int:
        """Prompts in each file."""
        return preset.rows.rows_per_file

    def _requested(self, run: Run, number: int) -> list[dict[str, int]]:
        """The settings that answers are asked for."""
        settings = run.preset.bootstrap
        seen = seen_combinations(run.folder("annotated") / "rows", run.schema, calibration(run))
        found = combinations_of(seen, run.schema, settings.leading, settings.min_count, settings.leading_at_least)
        log(f"bootstrap {number}: {len(found)} attribute combinations with {settings.leading} at its best")
        return found

    def _rated(self, run: Run, folder: Storage, number: int) -> AnnotationMetrics:
        samples = self._folder(run, number, "samples") / "rows"
        return annotate(run, f"bootstrap {number}: rate", [samples], folder / "rows", fingerprint_of(folder))

    def _selected(self, run: Run, folder: Storage, number: int) -> SelectionMetrics:
        samples, rated = (self._folder(run, number, kind) for kind in ("samples", "rated"))
        return select(run, Round(number, samples, rated, self.rounds.policy(number - 1)), folder)

    def _train(self, run: Run, folder: Storage, number: int) -> PolicyMetrics:
        """Train on the selected samples, mixed with annotated rows."""
        settings = run.preset.bootstrap
        samples = self._folder(run, number, "selected") / "rows"
        num_mixed = round(settings.annotated_per_sample * sum(table.num_rows for table in samples.tables()))
        mixed = some_rows(run.folder("annotated") / "rows", num_mixed, f"mix/{run.preset.seed}/{number}")
        write_table(to_table(mixed, run.schema), folder / "mixed")
        before = run.folder(self.rounds.policy(number - 1)) / "model"
        start = base_uri(run) if settings.start == "base" else before.uri
        what, rows = f"bootstrap {number}: policy", [samples, folder / "mixed"]
        metrics = train_policy(run, what, rows, start, settings.learner, folder)
        return metrics.model_copy(update={"counts": {**metrics.counts, "annotated_mixed_in": len(mixed)}})

    def _promotion(self, run: Run, folder: Storage, number: int) -> PromotionMetrics:
        last = run.metrics(self.rounds.promotion(number - 1), PromotionMetrics) if number > 1 else None
        before, after = self.rounds.policy(number - 1), self.rounds.policy(number)
        return decide_promotion(run, number, before, after, last.after if last else None, folder)


def sampled_settings(preset: Preset) -> object:
    names = {"leading", "leading_at_least", "min_count", "num_prompts", "samples_per_prompt"}
    return {
        "bootstrap": preset.bootstrap.model_dump(include=names),
        "calibrate": how_calibrated(preset),
        "sampling": sampling_settings(preset.sampling),
        "seed": preset.seed,
    }


def _selection_settings(preset: Preset) -> object:
    return {"selection": preset.bootstrap.selection, "calibrate": how_calibrated(preset), "lab": preset.rows.lab}


def how_calibrated(preset: Preset) -> bool | str:
    return "rank" if preset.policy.spread_labels else preset.policy.calibrate


def _training_settings(preset: Preset) -> object:
    bootstrap = preset.bootstrap.model_dump(mode="json", include={"learner", "annotated_per_sample", "start"})
    return {
        "bootstrap": bootstrap,
        "policy": preset.policy.model_copy(update={"learner": None}),
        "template": preset.template,
        "seed": preset.seed,
    }


def promotion_settings(preset: Preset) -> object:
    names = {"leading", "num_questions", "max_steering_fall", "max_quality_fall", "max_diversity_fall"}
    return {
        "bootstrap": preset.bootstrap.model_dump(include=names),
        "temperature": preset.evaluate.temperature,
        "sampling": sampling_settings(preset.sampling),
        "seed": preset.seed,
        "lab": preset.rows.lab,
    }
