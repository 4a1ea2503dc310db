"""The Ray Train worker: one training loop, for language model, predictor and policy alike.

It gets a task (the model and its loss) and a data loader (tokenized examples in order); it knows no prompts and no
jobs. All decisions depend on the position in the data, never on time or on the number of workers: a killed training
resumes from its last checkpoint, with any number of workers, and ends where it would have ended.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import ray.train
import torch

from actors.modeling.train_task import TrainTask
from actors.training.checkpointer import Checkpoint, Checkpointer, complete_steps, sweep
from actors.training.collectives import barrier, from_first, summed, summed_modulo
from actors.training.deepspeed_engine import Pack, TrainingEngine
from actors.training.early_stopping import EarlyStopping
from actors.training.metrics import MetricsLogger, Tracking, peak_memory_bytes
from actors.training.preemption import Preemption
from actors.training.save_model import save_trained_model
from actors.training.settings import LearnerSettings, rate_factor
from actors.training.train_state import TrainState
from data.errors import UserError
from data.examples import Examples, digest_of
from data.lease import Fence, LeaseLost, current_fence
from data.loader import DataLoader, PackedStep
from data.packing import dealt
from data.run_layout import TRAINING, as_json, write_record
from data.stage_metrics import LossPoint, TrainingMetrics
from data.storage import Storage

USER_ERROR = "user_error.txt"
START_STEPS = 512
"""`task.start` gets the examples of this many steps: enough for ridge-initialized heads, little of a long training."""
LINES, STEPS_PER_LINE = 30, 50
"""A training logs about so many lines, and one in so many steps at least."""


@dataclass(frozen=True)
class Assignment:
    """All arguments of a worker; crosses the process boundary once."""

    what: str
    """What is trained, for people."""
    task: TrainTask
    settings: LearnerSettings
    loader: DataLoader
    output_uri: str
    """Folder that gets `model/`, `training.json`, `tensorboard/`, and `checkpoints/` while it lasts."""
    tracking: Tracking = "none"
    fence: Fence | None = field(default_factory=current_fence)


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker loop: train, validate, save the model under `output_uri`, report metrics.

    Ray Train restarts the workers after any failure. A UserError would come back each time: it is noted for the driver
    (`USER_ERROR`), and the restarted workers end at once.
    """
    noted = Storage(config["assignment"].output_uri) / USER_ERROR
    if noted.exists():
        return
    try:
        metrics = _Training(config["assignment"]).run()
    except UserError as error:
        if not isinstance(error, LeaseLost):  # the driver that has taken over would read the note as its own
            noted.write_bytes(str(error).encode())
        raise
    ray.train.report(as_json(metrics))


class _Training:
    """One worker's part of the training."""

    def __init__(self, assignment: Assignment):
        self.task, self.settings, self.loader = assignment.task, assignment.settings, assignment.loader
        self.output = Storage(assignment.output_uri)
        settings, context = assignment.settings, ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        torch.manual_seed(settings.seed)
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
        place, fence = (self.rank, self.world), assignment.fence
        self.checkpoints = Checkpointer(self.output / "checkpoints", *place, settings.keep_checkpoints, fence=fence)
        self.best = Checkpointer(self.output / "best", *place, 1, self.checkpoints.timing, fence)
        if not self.loader.corpus.shards:
            raise UserError(f"no examples to train on in {self.loader.corpus.uri}; check the rows and max_tokens")
        self.engine = TrainingEngine(self.task, settings, self.rank, self.world)
        checkpoint = self._last_checkpoint()
        self.state = TrainState(**checkpoint.state) if checkpoint else TrainState()
        self.early_stopping = EarlyStopping(settings.patience, **self.state.validations)
        self.validates = self.loader.split.has_validation
        self.trained_digest, self.cpu_s = 0, 0.0
        self.logger = MetricsLogger(
            assignment.what, self.output, assignment.tracking, self.world, settings.precision, enabled=self.rank == 0
        )
        # Sharded weights cannot run before DeepSpeed wraps them; jobs.runner.preset refuses what needs `start` then.
        if checkpoint is None and settings.zero_stage < 3:
            self._start_module()
        self.engine.start(checkpoint)
        corpus, epochs = self.loader.corpus, self.loader.epochs
        self.logger.log(f"{self.engine.describe()}; {corpus.num_rows:,} rows, {epochs} epochs")
        if checkpoint:
            at = f"step {self.state.step}, {self.state.progress:.2f} epochs"
            self.logger.log(f"goes on after {at}, from {checkpoint.folder.uri}")
            checkpoint.close()

    def run(self) -> TrainingMetrics:
        """Train to the end, or until a stop is requested; returns the metrics."""
        preemption = Preemption(self.output, self.rank)
        self.cpu_s = -time.process_time()
        loss = rate = 0.0
        for step in self.loader.steps(self.state.next_step):
            before = self.state.progress
            loss, rate = self.do(step)
            if step.progress == self.loader.epochs:
                break
            if self.state.step % self._log_every() == 0:
                self.log(loss, rate)
            if self.validates and _crossed(before, step.progress, self.settings.validate_every):
                self.validate(last=False)
            if self.early_stopping.should_stop:
                self.logger.log(
                    f"stopped early: the last {self.settings.patience} validations were no better than that of "
                    f"step {self.early_stopping.best_step}"
                )
                return self.finish()
            saves, ends = preemption.requested()
            if saves or _crossed(before, step.progress, self.settings.checkpoint_every):
                self.checkpoint(wait=saves)
            if ends:
                self.logger.log(f"stop requested: the checkpoint after step {self.state.step} is kept")
                return self.metrics()
        if not self.state.step:
            raise UserError(
                f"no examples to train on in {self.loader.corpus.uri}: all are held out or rejected; "
                "lower validation_share, or check max_tokens"
            )
        self.log(loss, rate)
        if self.validates:
            self.validate(last=True)
        self._count_trained()
        self.logger.log(self.state.audit())
        return self.finish()

    def do(self, step: PackedStep) -> tuple[float, float]:
        """One optimizer step; returns this worker's share of its mean loss, and the learning rate."""
        started = time.perf_counter()
        settings, state, examples = self.settings, self.state, step.examples
        weight = self._weight(examples, step.packs)
        assert weight > 0, "a step without a single target"
        progress = step.middle / self.loader.epochs
        rate = settings.learning_rate * rate_factor(settings.schedule, progress, settings.warmup)
        if step.is_first:
            digest = digest_of(examples.ids[i] for i in self.loader.drawn(examples, step.epoch))
            state.expected_digest = (state.expected_digest + digest) % 2**64
        loss = self.engine.step(list(self._share(examples, step.packs)), weight, rate)
        seconds = time.perf_counter() - started
        state.add(step, settings.pack_tokens, weight, seconds)
        squares = sum(float(examples.lengths[i]) ** 2 for pack in step.packs for i in pack)
        self.logger.count(step.num_tokens, self.engine.arithmetic.flops(step.num_tokens, weight, squares), seconds)
        return loss, rate

    def _share(self, examples: Examples, packs: list[list[int]]) -> Iterator[Pack]:
        """This worker's packs of a step; one with fewer than others adds the shortest example, which does not count."""
        # Attention grows with the square of each example's length, so tokens alone do not give the cost of a pack.
        costs = [sum(int(examples.lengths[i]) + int(examples.lengths[i]) ** 2 / 4096 for i in pack) for pack in packs]
        shares = dealt(packs, costs, self.world)
        for number in shares[self.rank]:
            self.trained_digest += digest_of(examples.ids[i] for i in packs[number])
            seed = hash((self.settings.seed, self.state.step, number)) % 2**63
            yield Pack(self._inputs(examples, packs[number]), seed)
        shortest = min((i for pack in packs for i in pack), key=lambda i: int(examples.lengths[i]))
        for _ in range(max(map(len, shares)) - len(shares[self.rank])):
            yield Pack(self._inputs(examples, [shortest]), seed=0, counts=False)

    def _inputs(self, examples: Examples, pack: list[int]) -> dict[str, Any]:
        return self.task.inputs([examples[i] for i in pack], self.engine.device, self.settings.pack_tokens)

    def _weight(self, examples: Examples, packs: list[list[int]]) -> float:
        return sum(self.task.target_weight(examples[i]) for pack in packs for i in pack)

    def _log_every(self) -> int:
        """In steps; the same on all workers."""
        expected = self.state.step / self.state.progress * self.loader.epochs
        return max(1, min(STEPS_PER_LINE, int(expected / LINES)))

    def log(self, loss: float, rate: float) -> None:
        """Log and record the loss; every worker takes part."""
        [mean] = summed(loss)
        self.logger.step(self.state, self.loader.epochs, mean, rate, self.engine.gradient_norm)
        self.state.losses.append({"step": self.state.step, "loss": round(mean, 5), "learning_rate": rate})

    def validate(self, last: bool) -> None:
        """Mean loss over all validation targets; keeps the weights of the best step. Every worker takes part."""
        cpu_started = time.process_time()
        loss = self._validation_loss()
        self.cpu_s -= time.process_time() - cpu_started
        if loss is None:
            return
        improved = self.early_stopping.add(self.state.step, loss)
        # The last step's weights need no copy: they are the live ones.
        if improved and not last:
            self.best.save(self.state.step, {"weights": self.engine.weights()}, None)
        self.logger.validated(self.state, loss, improved)

    def _validation_loss(self) -> float | None:
        """None if no example of a small set is held out and no decision depends on the loss."""
        self.engine.validating(True)
        total = weight = 0.0
        for examples, packs in self.loader.validation(self.world):
            mine = packs[self.rank]
            # Every worker runs as many forwards as the others: ZeRO-3 needs that.
            loss = self.engine.loss(self._inputs(examples, mine or packs[0]))
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

    def _count_trained(self) -> None:
        """Add what all workers trained on since the last call to the state's digest."""
        self.state.trained_digest = (self.state.trained_digest + summed_modulo(self.trained_digest)) % 2**64
        self.trained_digest = 0

    def checkpoint(self, wait: bool) -> None:
        """Save weights, moments and state; every worker takes part."""
        self._count_trained()
        self.state.validations = self.early_stopping.state()
        shards = {"weights": self.engine.weights(), **self.engine.moments()}
        self.checkpoints.save(self.state.step, shards, asdict(self.state))
        if wait:
            self.checkpoints.wait()
            barrier()  # the first worker has marked it complete

    def _last_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint of an earlier run of this training."""
        step = None
        if self.rank == 0:
            sweep(self.checkpoints.folder)
            sweep(self.best.folder)
            step = max(complete_steps(self.checkpoints.folder), default=None)
        step = from_first(step)
        return None if step is None else Checkpoint(self.checkpoints.folder, step)

    def metrics(self, cpu_seconds: float = 0.0) -> TrainingMetrics:
        """The metrics of the training so far, without its loss curve."""
        timing, held = self.checkpoints.timing.metrics(), self.engine.held
        workers = self.settings.zero_stage, self.world
        return self.state.metrics(self.early_stopping, timing, *workers, held, peak_memory_bytes(), cpu_seconds)

    def finish(self) -> TrainingMetrics:
        """Save the model of the best step and the metrics; remove the checkpoints."""
        self.checkpoints.wait()
        self.best.wait()
        self.cpu_s += time.process_time()
        best = self.early_stopping.best_step
        if not from_first(best in (0, self.state.step, *complete_steps(self.best.folder))):
            self.logger.log(f"warning: the weights of step {best} were not kept; those of the last step are saved")
            self.early_stopping.best_step, self.early_stopping.best_loss = 0, float("inf")
        [cpu_s] = summed(self.cpu_s)
        metrics = self.metrics(cpu_s)
        kept = Checkpoint(self.best.folder, step) if (step := metrics.saved_step) != self.state.step else None
        self.checkpoints.require_owner()
        save_trained_model(self.task, self.engine, kept, self.output / "model")
        if self.rank == 0:
            losses = tuple(LossPoint.model_validate(point) for point in self.state.losses)
            write_record(self.output / TRAINING, metrics.model_copy(update={"losses": losses}))
            self.checkpoints.folder.remove()
            self.best.folder.remove()
        self.logger.close()
        barrier()  # no worker ends before the model is saved
        return metrics

    @torch.no_grad()
    def _start_module(self) -> None:
        device, module = self.engine.device, self.engine.module
        module.to(device).eval()

        def mine() -> Iterator[dict[str, Any]]:
            for step in itertools.islice(self.loader.steps(), START_STEPS):
                for number in dealt(step.packs, [len(pack) for pack in step.packs], self.world)[self.rank]:
                    yield self._inputs(step.examples, step.packs[number])

        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            if line := self.task.start(module, mine()):
                self.logger.log(line)


def _crossed(before: float, after: float, every: float) -> bool:
    """Did progress pass a multiple of `every`?"""
    return every > 0 and int(after / every + 1e-9) > int(before / every + 1e-9)
