"""Trainings of a random Llama with Ray Train and DeepSpeed: every ZeRO stage, one that is killed, memory, speed."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.modeling.model_shape import read_config, shape_of
from actors.training.examples import ConversationExamples, ExampleSpec
from actors.training.kept_checkpoints import CHECKPOINTS
from actors.training.memory import training_memory
from actors.training.settings import LearnerSettings
from data.attributes import shipped
from data.conversation import to_table
from data.lab import Lab, LabSettings
from data.loader import Corpus
from data.stage_metrics import TrainingMetrics
from data.storage import Storage
from jobs.gpu_checks.checks import CheckFailed
from jobs.gpu_checks.events import steady, values
from jobs.gpu_checks.watched import BEFORE, FIRST_LIFE, SECOND_LIFE, WatchedPolicy, noted, was_killed
from jobs.pipelines.fit import fit
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import log

SCHEMA = shipped("lab")
SAME_LOSS = {"fp32": 1e-3, "bf16": 3e-2}
"""Nats by which two trainings may differ that differ in rounding alone."""
ROWS_AT_ONCE = 16
KILLED_AT = 0.6
"""Share of a worker's forwards after which it is killed."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    losses: list[float]
    """Of each step."""
    tokens_per_s: float
    share_of_peak: float
    peak_bytes: int
    """Of the first worker, for this training alone: the GPU's, or resident memory above that before the model."""
    planned_bytes: float
    forwards: int
    """Of all workers, in their first life."""


@dataclass(frozen=True)
class Trainings:
    """Trains the policy at `start` on the examples in `folder`/examples."""

    start: str
    folder: Path
    learner: LearnerSettings

    def write_examples(self, steps: int) -> int:
        """Rows of the synthetic world for about so many steps, as examples; returns their tokens."""
        learner = self.learner
        maker = ConversationExamples(ExampleSpec(self.start, SCHEMA, "steerlm", learner.max_tokens), answers_only=True)
        wanted = steps * learner.packs_per_step * learner.pack_tokens
        rows = Lab(LabSettings(num_rows=10**7)).rows()
        tables, tokens = list[pa.Table](), 0
        while tokens < wanted:
            table = maker(to_table(itertools.islice(rows, ROWS_AT_ONCE), SCHEMA))
            tables.append(table)
            tokens += sum(map(len, table.column("ids").to_pylist()))
        write_table(pa.concat_tables(tables), Storage(str(self.folder / "examples")))
        return tokens

    def train(self, name: str, kill_at: int = 0, **changes: object) -> Trained:
        """A training with changed settings; raises as `fit` does."""
        output = Storage(str(self.folder / name))
        notes = str(self.folder / f"{name}-notes")
        learner = LearnerSettings.model_validate(self.learner.model_dump() | changes)
        checkpoints = (output / CHECKPOINTS).uri
        task = WatchedPolicy(self.start, SCHEMA, "steerlm", notes=notes, kill_at=kill_at, checkpoints=checkpoints)
        metrics = fit(name, task, learner, Corpus.of(Storage(str(self.folder / "examples"))), output)
        return self._trained(metrics, learner, output, notes)

    def _trained(self, metrics: TrainingMetrics, learner: LearnerSettings, output: Storage, notes: str) -> Trained:
        found = values(Path((output / "tensorboard").path))
        before = 0.0 if learner.use_gpu else statistics.mean(noted(notes, BEFORE))
        return Trained(
            losses=[point.loss for point in metrics.losses],
            tokens_per_s=steady(found["tokens_per_s"]),
            share_of_peak=steady(found["share_of_peak"]),
            peak_bytes=metrics.peak_memory_bytes - int(before),
            planned_bytes=planned_bytes(self.start, learner),
            forwards=sum(noted(notes, FIRST_LIFE)),
        )

    def resumed(self, expected: Trained) -> str:
        """Kill a worker in the middle; the training must go on from its checkpoint and end as `expected` did."""
        kill_at = int(KILLED_AT * expected.forwards / self.learner.num_workers)
        log("  a worker is killed on purpose: what Ray says of a dead actor until the next line is no failure")
        found = self.train("killed", kill_at, checkpoint_every=0.2, max_failures=1)
        notes = str(self.folder / "killed-notes")
        if not was_killed(notes):
            raise CheckFailed("no checkpoint was complete before the training ended, so that nothing could be killed")
        again = sum(noted(notes, SECOND_LIFE))
        if again >= expected.forwards:
            raise CheckFailed(f"the training began anew: {again} packs after the kill, {expected.forwards} in all")
        difference = same_losses(found.losses, expected.losses, self.learner.precision)
        share = f"{again} of {expected.forwards} packs after it"
        return f"killed at {KILLED_AT:.0%}, {share}, losses within {difference:.1e} of the unbroken ones"


def planned_bytes(model: str, learner: LearnerSettings) -> float:
    """Peak memory of a worker by its plan, for the model in a folder, above the process before it has one."""
    memory = training_memory(shape_of(read_config(model)), learner)
    return memory.total - memory.parts["process"]


def same_losses(found: Sequence[float], expected: Sequence[float], precision: str) -> float:
    """The largest difference; raises CheckFailed if it is more than rounding, or the number of steps differs."""
    if len(found) != len(expected):
        raise CheckFailed(f"{len(found)} steps instead of {len(expected)}")
    difference = float(np.abs(np.subtract(found, expected)).max())
    if not difference <= SAME_LOSS[precision]:  # NaN is no agreement
        raise CheckFailed(
            f"losses differ by {difference:.1e} nats from the expected ones, {SAME_LOSS[precision]:g} is rounding "
            f"({precision}): {_rounded(found)} instead of {_rounded(expected)}"
        )
    return difference


def _rounded(losses: Sequence[float]) -> str:
    return " ".join(f"{loss:.3f}" for loss in losses[:6])


def zero_check(trainings: Trainings, found: dict[int, Trained], stage: int) -> Callable[[], str]:
    """The check of a ZeRO stage, which keeps what it found."""

    def check() -> str:
        trained = found[stage] = trainings.train(f"zero-{stage}", zero_stage=stage)
        first, last = trained.losses[0], trained.losses[-1]
        speed = f"{trained.tokens_per_s:,.0f} tokens/s, {trained.share_of_peak:.0%} of peak"
        told = f"{len(trained.losses)} steps, loss {first:.3f} -> {last:.3f}, {speed}"
        if not last < first:
            raise CheckFailed(f"the training does not learn: {told}")
        if stage == 0 or 0 not in found:
            return told
        difference = same_losses(trained.losses, found[0].losses, trainings.learner.precision)
        return f"{told}, losses within {difference:.1e} of ZeRO 0"

    return check


def memory_lines(found: Mapping[int, Trained]) -> list[tuple[object, ...]]:
    """Rows of the table of peak memory against plan, MiB."""
    return [
        (
            f"ZeRO {stage}",
            f"{trained.planned_bytes / 2**20:,.0f}",
            f"{trained.peak_bytes / 2**20:,.0f}",
            f"{trained.peak_bytes / trained.planned_bytes:.2f}",
        )
        for stage, trained in sorted(found.items())
    ]
