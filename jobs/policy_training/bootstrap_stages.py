"""The stages of bootstrap rounds: sample from the policy at its best settings, rate the samples, select, train on them, see whether it helped.

Combinations are those seen in the annotated rows at the best value of the leading attribute, drawn uniformly; the next policy is
conditioned on what the predictor says the samples *got*, not on what was asked (arXiv 2310.05344, section 3.4).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from data.conversation import Conversation, from_table, problem, to_table
from data.prompts import bootstrap_prompts, bootstrap_source, combinations, drawn, prompts_table
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
from jobs.pipelines.fit import base_uri
from jobs.pipelines.map_rows import write_table
from jobs.pipelines.sample import sample, sampling_settings
from jobs.policy_training.conditioned_sft import train_policy
from jobs.runner.preset import Preset
from jobs.runner.rounds import KINDS, Rounds
from jobs.runner.stage import Run, Stage, fingerprint_of, log


@dataclass(frozen=True)
class BootstrapStages:
    """The rounds that follow one policy. Once a round is not promoted, the stages of those after it do nothing but say so."""

    rounds: Rounds = field(default_factory=Rounds)

    def stages(self, number: int) -> list[Stage]:
        """A round as five stages, so that a crash costs at most one of them."""
        before = self.rounds.policy(number - 1)
        samples, rated, selected, policy, promotion = (self.rounds.stage(number, kind) for kind in KINDS)
        stages = [
            Stage(
                samples,
                ("predictor", "annotated", before),
                _sampling_settings,
                partial(self._samples, number=number),
                resumes=True,
            ),
            Stage(
                rated,
                (samples, "predictor"),
                lambda preset: {},
                partial(self._rated, number=number),
                resumes=True,
                contents=predictor_weights,
            ),
            Stage(
                selected,
                (samples, rated, "predictor", before),
                _selection_settings,
                partial(self._selected, number=number),
            ),
            Stage(
                policy,
                (selected, "predictor", "annotated", before, "base"),
                _training_settings,
                partial(self._train, number=number),
                resumes=True,
            ),
            Stage(
                promotion,
                (policy, before, "rows", "predictor"),
                _promotion_settings,
                partial(self._promotion, number=number),
            ),
        ]
        follows = (self.rounds.promotion(number - 1),) if number > 1 else ()
        return [
            replace(s, needs=(*s.needs, *follows), work=partial(self._unless_over, work=s.work, number=number))
            for s in stages
        ]

    def _unless_over(
        self, run: Run, folder: Storage, work: Callable[[Run, Storage], StageMetrics], number: int
    ) -> StageMetrics:
        last = self.rounds.decision(run, number - 1)
        if last is None or last.promoted:
            return work(run, folder)
        log(f"bootstrap {number}: not run, for round {number - 1} was not promoted")
        # What a reader of the last decision looks for: nothing has changed since.
        return NotRun(not_run=last.fell, promoted=False, fell=last.fell, policy=last.policy)

    def _folder(self, run: Run, number: int, kind: str) -> Storage:
        return run.folder(self.rounds.stage(number, kind))

    def _samples(self, run: Run, folder: Storage, number: int) -> SamplesMetrics:
        """Plan the round and sample it; answers that are no turn (empty) are not rated, and counted."""
        settings, annotated = run.preset.bootstrap, run.folder("annotated") / "rows"
        values = (v for row in _rows(annotated) for v in map(calibration(run), row.predicted) if v)
        asked = combinations(values, run.schema, settings.leading, settings.min_count, settings.leading_at_least)
        log(f"bootstrap {number}: {len(asked)} attribute combinations with {settings.leading} at its best")
        source = bootstrap_source(number)
        prompts = bootstrap_prompts(
            _rows(annotated), asked, settings.num_prompts, settings.samples_per_prompt, run.preset.seed + number, source
        )
        size = run.preset.rows.rows_per_file
        for start in range(0, len(prompts), size):
            write_table(
                prompts_table(prompts[start : start + size]), folder / "prompts", f"part-{start // size:05d}.parquet"
            )
        policy, temperature = run.folder(self.rounds.policy(number - 1)), run.preset.sampling.temperature
        metrics = sample(
            run,
            f"bootstrap {number}: sample",
            policy,
            folder / "prompts",
            folder / "answers",
            temperature,
            fingerprint_of(folder),
        )
        reasons: Counter[str] = Counter()
        for part, table in enumerate((folder / "answers").tables()):
            kept = []
            for row in from_table(table):
                reason = problem(row.messages)
                reasons[reason or "kept"] += 1
                if not reason:
                    kept.append(row)
            write_table(to_table(kept, run.schema), folder / "rows", f"part-{part:05d}.parquet")
        return SamplesMetrics(**dict(metrics), combinations=tuple(asked), counts={"prompts": len(prompts), **reasons})

    def _rated(self, run: Run, folder: Storage, number: int) -> AnnotationMetrics:
        return annotate(
            run,
            f"bootstrap {number}: rate",
            [self._folder(run, number, "samples") / "rows"],
            folder / "rows",
            fingerprint_of(folder),
        )

    def _selected(self, run: Run, folder: Storage, number: int) -> SelectionMetrics:
        return select(
            run,
            Round(
                number,
                self._folder(run, number, "samples"),
                self._folder(run, number, "rated"),
                self.rounds.policy(number - 1),
            ),
            folder,
        )

    def _train(self, run: Run, folder: Storage, number: int) -> PolicyMetrics:
        """Train on the selected samples, mixed with annotated rows."""
        settings = run.preset.bootstrap
        samples = self._folder(run, number, "selected") / "rows"
        wanted = round(settings.annotated_per_sample * sum(table.num_rows for table in samples.tables()))
        mixed = drawn(_rows(run.folder("annotated") / "rows"), wanted, f"mix/{run.preset.seed}/{number}")
        write_table(to_table(mixed, run.schema), folder / "mixed")
        start = (
            base_uri(run) if settings.start == "base" else (run.folder(self.rounds.policy(number - 1)) / "model").uri
        )
        metrics = train_policy(
            run, f"bootstrap {number}: policy", [samples, folder / "mixed"], start, settings.learner, folder
        )
        return metrics.model_copy(update={"counts": {**metrics.counts, "annotated_mixed_in": len(mixed)}})

    def _promotion(self, run: Run, folder: Storage, number: int) -> PromotionMetrics:
        last = run.manifest(self.rounds.promotion(number - 1)) if number > 1 else None
        return decide_promotion(
            run,
            number,
            self.rounds.policy(number - 1),
            self.rounds.policy(number),
            last and last["metrics"]["after"],
            folder,
        )


def _rows(folder: Storage) -> Iterable[Conversation]:
    return (row for table in folder.tables() for row in from_table(table))


def _sampling_settings(preset: Preset) -> object:
    bootstrap = preset.bootstrap.model_dump(
        include={"leading", "leading_at_least", "min_count", "num_prompts", "samples_per_prompt"}
    )
    return {
        "bootstrap": bootstrap,
        "calibrate": preset.policy.calibrate,
        "sampling": sampling_settings(preset.sampling),
        "seed": preset.seed,
    }


def _selection_settings(preset: Preset) -> object:
    return {"selection": preset.bootstrap.selection, "calibrate": preset.policy.calibrate, "lab": preset.rows.lab}


def _training_settings(preset: Preset) -> object:
    bootstrap = preset.bootstrap.model_dump(mode="json", include={"learner", "annotated_per_sample", "start"})
    return {
        "bootstrap": bootstrap,
        "policy": preset.policy.model_copy(update={"learner": None}),
        "template": preset.template,
        "seed": preset.seed,
    }


def _promotion_settings(preset: Preset) -> object:
    bootstrap = preset.bootstrap.model_dump(
        include={"leading", "num_questions", "max_steering_fall", "max_quality_fall", "max_diversity_fall"}
    )
    asking = {
        "temperature": preset.evaluate.temperature,
        "sampling": sampling_settings(preset.sampling),
        "seed": preset.seed,
        "lab": preset.rows.lab,
    }
    return {"bootstrap": bootstrap, **asking}
