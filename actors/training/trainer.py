"""The Ray Train worker: one training loop, for language model, predictor and policy alike.

It is given a task (what to build, what the loss is) and a feed (tokenised examples, in which order); it knows neither prompts nor jobs. Everything
that happens depends on where the data stands, never on time or on the number of workers: so a training that was killed and goes on from its last
checkpoint, with as many workers or with others, ends where it would have ended.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray.train
import torch

from actors.modeling.train_task import Task
from actors.training.checkpointer import Checkpoint, Checkpointer, complete_steps, sweep
from actors.training.deepspeed_engine import Engine, Row, from_first, summed, summed_modulo
from actors.training.early_stopping import EarlyStopping
from actors.training.metrics import MetricsLogger, Tracking, peak_memory_bytes
from actors.training.preemption import Preemption
from actors.training.save_model import save_trained_model
from actors.training.settings import LearnerSettings, rate_factor
from actors.training.train_state import TrainState
from data.errors import UserError
from data.examples import Examples, digest_of
from data.loader import DataLoader, PackedStep
from data.packing import dealt
from data.storage import Storage

USER_ERROR = "user_error.txt"
START_STEPS = 512
"""As many steps' examples a task is shown before the first step: enough for heads in closed form, and a small share of a long training."""
LINES, STEPS_A_LINE = 30, 50
"""A training says so many lines of itself, and one in so many steps at least."""


@dataclass(frozen=True)
class Assignment:
    """Everything a worker is told; crosses the process boundary once."""

    what: str
    """What is trained, for people."""
    task: Task
    settings: LearnerSettings
    loader: DataLoader
    output_uri: str
    """Folder that gets `model/`, `training.json`, `tensorboard/`, and `checkpoints/` while it lasts."""
    tracking: Tracking = "none"


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker loop: train, validate, save the model under `output_uri`, report figures.

    After any failure Ray Train starts the workers again. A mistake that only people can mend would come back each time: it is noted for the driver
    (`MISTAKE`), and the workers that are started next end at once.
    """
    noted = Storage(config["assignment"].output_uri) / USER_ERROR
    if noted.exists():
        return
    try:
        metrics = _Training(config["assignment"]).run()
    except Exception as error:
        if isinstance(error, UserError):
            noted.write_bytes(str(error).encode())
        raise
    ray.train.report(metrics)


class _Training:
    """One worker's part of the training."""

    def __init__(self, assignment: Assignment):
        self.assignment, self.task, self.settings, self.loader = (
            assignment,
            assignment.task,
            assignment.settings,
            assignment.loader,
        )
        self.output = Storage(assignment.output_uri)
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        torch.manual_seed(self.settings.seed)
        torch.set_num_threads(max(1, int(self.settings.cpus_per_worker)))
        self.checkpoints = Checkpointer(
            self.output / "checkpoints", self.rank, self.world, self.settings.keep_checkpoints
        )
        self.best = Checkpointer(self.output / "best", self.rank, self.world, keep=1, timing=self.checkpoints.timing)
        if not self.loader.corpus.shards:
            raise UserError(f"no examples to train on in {self.loader.corpus.uri}; check the rows and max_tokens")
        self.engine = Engine(self.task, self.settings, self.rank, self.world)
        checkpoint = self._checkpoint()
        self.at = TrainState.of(checkpoint.state) if checkpoint else TrainState()
        self.validations = EarlyStopping(self.settings.patience, **self.at.validations)
        self.ran, self.cpu_s = 0, 0.0
        self.metrics_logger = MetricsLogger(
            assignment.what,
            self.output,
            assignment.tracking,
            self.world,
            self.settings.precision,
            speaks=self.rank == 0,
        )
        if (
            checkpoint is None and self.settings.zero_stage < 3
        ):  # sharded weights cannot run before there is an engine; jobs.runner.preset refuses what needs it
            self._start_module()
        self.engine.start(checkpoint)
        self.metrics_logger.log(
            f"{self.engine.describe()}; {self.loader.corpus.num_rows:,} rows, {self.loader.epochs} epochs"
        )
        if checkpoint:
            self.metrics_logger.log(
                f"goes on after step {self.at.step}, {self.at.progress:.2f} epochs, from {checkpoint.folder.uri}"
            )
            checkpoint.close()

    def run(self) -> dict[str, Any]:
        """Train from where we stand to the end, or to where we are told to stop; returns the figures."""
        stopping = Preemption(self.output, self.rank)
        self.cpu_s = -time.process_time()
        loss = rate = 0.0
        for step in self.loader.steps(self.at.at):
            before = self.at.progress
            loss, rate = self.do(step)
            if step.progress == self.loader.epochs:
                break
            if self.at.step % self._log_every() == 0:
                self.log(loss, rate)
            if self._validates and _crossed(before, step.progress, self.settings.validate_every):
                self.validate(last=False)
            if self.validations.should_stop:
                self.metrics_logger.log(
                    f"stopped early: the last {self.settings.patience} validations were no better than that of step {self.validations.best_step}"
                )
                return self.finish()
            saves, ends = stopping.asked()
            if saves or _crossed(before, step.progress, self.settings.checkpoint_every):
                self.checkpoint(wait=saves)
            if ends:
                self.metrics_logger.log(f"told to stop: all that is needed to go on after step {self.at.step} is kept")
                return self.metrics()
        if not self.at.step:
            raise UserError(
                f"no examples to train on in {self.loader.corpus.uri}: all are held out or rejected; lower validation_share, or check max_tokens"
            )
        self.log(loss, rate)
        if self._validates:
            self.validate(last=True)
        self._count_run()
        self.metrics_logger.log(self.at.audit())
        return self.finish()

    def do(self, step: PackedStep) -> tuple[float, float]:
        """One optimizer step; returns this worker's share of its mean loss, and the learning rate."""
        started = time.perf_counter()
        settings, examples = self.settings, step.examples
        weight = self._weight(examples, step.packs)
        assert weight > 0, "a step without a single target"
        rate = settings.learning_rate * rate_factor(
            settings.schedule, step.middle / self.loader.epochs, settings.warmup
        )
        if step.is_first:
            self.at.expected = (
                self.at.expected + digest_of(examples.ids[i] for i in self.loader.drawn(examples, step.epoch))
            ) % 2**64
        loss = self.engine.step(list(self._share(examples, step.packs)), weight, rate)
        seconds = time.perf_counter() - started
        self.at.done(step, settings.pack_tokens, weight, seconds)
        squares = sum(float(examples.lengths[i]) ** 2 for row in step.packs for i in row)
        self.metrics_logger.did(
            step.num_tokens, self.engine.arithmetic.flops(step.num_tokens, weight, squares), seconds
        )
        return loss, rate

    def _share(self, examples: Examples, rows: list[list[int]]) -> Iterator[Row]:
        """This worker's rows of a step; one that has fewer than others runs the shortest example for nothing."""
        # Attention grows with the square of each example's length: what a row costs is not its tokens alone.
        costs = [sum(int(examples.lengths[i]) + int(examples.lengths[i]) ** 2 / 4096 for i in row) for row in rows]
        shares = dealt(rows, costs, self.world)
        for row in shares[self.rank]:
            self.ran += digest_of(examples.ids[i] for i in rows[row])
            yield Row(self._inputs(examples, rows[row]), seed=hash((self.settings.seed, self.at.step, row)) % 2**63)
        shortest = min((i for row in rows for i in row), key=lambda i: int(examples.lengths[i]))
        for _ in range(max(map(len, shares)) - len(shares[self.rank])):
            yield Row(self._inputs(examples, [shortest]), seed=0, counts=False)

    def _inputs(self, examples: Examples, row: list[int]) -> dict[str, Any]:
        return self.task.inputs([examples[i] for i in row], self.engine.device, self.settings.pack_tokens)

    def _weight(self, examples: Examples, rows: list[list[int]]) -> float:
        return sum(self.task.target_weight(examples[i]) for row in rows for i in row)

    def _log_every(self) -> int:
        """In steps; all workers count alike."""
        expected = self.at.step / self.at.progress * self.loader.epochs
        return max(1, min(STEPS_A_LINE, int(expected / LINES)))

    def log(self, loss: float, rate: float) -> None:
        """Say and note where we are; every worker takes part."""
        [mean] = summed(loss)
        self.metrics_logger.step(self.at, self.loader.epochs, mean, rate, self.engine.gradient_norm)
        self.at.losses.append({"step": self.at.step, "loss": round(mean, 5), "learning_rate": rate})

    @property
    def _validates(self) -> bool:
        return self.loader.split.has_validation

    def validate(self, last: bool) -> None:
        """Mean loss over all targets to validate on; keeps the weights if it is the best so far. Every worker takes part."""
        cpu_started = time.process_time()
        loss = self._validation_loss()
        self.cpu_s -= time.process_time() - cpu_started
        if loss is None:
            return
        improved = self.validations.add(self.at.step, loss)
        # The last step's weights need no copy: they are the live ones.
        if improved and not last:
            self.best.save(self.at.step, {"weights": self.engine.weights()}, None)
        self.metrics_logger.validated(self.at, loss, improved)

    def _validation_loss(self) -> float | None:
        """Every worker runs as many forwards as the others (ZeRO-3 needs that). None if chance held out nothing of a small set, and no step depends on it."""
        self.engine.validating(True)
        total = weight = 0.0
        for examples, rows in self.loader.validation(self.world):
            mine = rows[self.rank]
            loss = self.engine.loss(self._inputs(examples, mine or rows[0]))
            total += loss if mine else 0.0
            weight += self._weight(examples, [mine])
        self.engine.validating(False)
        total, weight = summed(total, weight)
        if not weight and self.settings.validate_every:
            raise UserError(
                f"validate_every is {self.settings.validate_every:g}, but no example is held out to validate on; "
                "raise validation_share, or set validate_every and patience to 0"
            )
        return total / weight if weight else None

    def _count_run(self) -> None:
        """Add what all workers ran since the last time to what was run."""
        self.at.ran, self.ran = (self.at.ran + summed_modulo(self.ran)) % 2**64, 0

    def checkpoint(self, wait: bool) -> None:
        """Keep all that is needed to go on from here; every worker takes part."""
        self._count_run()
        self.at.validations = {key: value for key, value in asdict(self.validations).items() if key != "patience"}
        self.checkpoints.save(
            self.at.step, {"weights": self.engine.weights(), **self.engine.moments()}, self.at.state()
        )
        if wait:
            self.checkpoints.wait()
            from_first(None)  # the first worker's mark that it is complete is there

    def _checkpoint(self) -> Checkpoint | None:
        """The last checkpoint that an earlier life of this training left."""
        step = None
        if self.rank == 0:
            sweep(self.checkpoints.folder)
            sweep(self.best.folder)
            step = max(complete_steps(self.checkpoints.folder), default=None)
        step = from_first(step)
        return None if step is None else Checkpoint(self.checkpoints.folder, step)

    def metrics(self) -> dict[str, Any]:
        """What the training has come to."""
        at, settings, validations, timing = self.at, self.settings, self.validations, self.checkpoints.timing
        return {
            "zero_stage": settings.zero_stage,
            "num_workers": self.world,
            "steps": at.step,
            "epochs": round(at.progress, 4),
            "examples": at.examples,
            "tokens": at.tokens,
            "rows_filled": round(at.tokens / at.budget_tokens, 4),
            "target_weight": round(at.target_weight, 3),
            "held_bytes": self.engine.held,
            "tokens_per_s": round(at.tokens / at.seconds, 1),
            "train_seconds": round(at.seconds, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "checkpoints": timing.metrics(),
            "saved_step": validations.best_step or at.step,
            "validation_loss": validations.best_loss if validations.best_step else None,
            "validations": validations.curve,
        }

    def finish(self) -> dict[str, Any]:
        """Publish the model of the step to save and the figures; the checkpoints go."""
        self.checkpoints.wait()
        self.best.wait()
        self.cpu_s += time.process_time()
        best = self.validations.best_step
        if not from_first(best in (0, self.at.step, *complete_steps(self.best.folder))):
            self.metrics_logger.log(
                f"warning: the weights of step {best} were not kept; those of the last step are saved"
            )
            self.validations.best_step, self.validations.best_loss = 0, float("inf")
        [cpu_s] = summed(self.cpu_s)
        metrics = self.metrics() | {"cpu_seconds": round(cpu_s, 2)}  # of this life, all but building and validating
        kept = Checkpoint(self.best.folder, metrics["saved_step"]) if metrics["saved_step"] != self.at.step else None
        save_trained_model(self.task, self.engine, kept, self.output / "model")
        if self.rank == 0:
            (self.output / "training.json").write_json(metrics | {"losses": self.at.losses})
            self.checkpoints.folder.remove()
            self.best.folder.remove()
        self.metrics_logger.close()
        from_first(None)  # nobody ends before the model is there
        return metrics

    @torch.no_grad()
    def _start_module(self) -> None:
        device, module = self.engine.device, self.engine.module
        module.to(device).eval()

        def mine() -> Iterator[dict[str, Any]]:
            for step in itertools.islice(self.loader.steps(), START_STEPS):
                for row in dealt(step.packs, [len(r) for r in step.packs], self.world)[self.rank]:
                    yield self._inputs(step.examples, step.packs[row])

        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            if said := self.task.start(module, mine()):
                self.metrics_logger.log(said)


def _crossed(before: float, after: float, every: float) -> bool:
    """Did progress pass a multiple of `every`?"""
    return every > 0 and int(after / every + 1e-9) > int(before / every + 1e-9)
