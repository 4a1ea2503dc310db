"""One worker's part of a training: one loop, for language model, predictor and policy alike.

It gets a task (the model and its loss) and a data loader (tokenized examples in order); it knows no prompts and no
jobs. What changes the result depends on the position in the data, never on time or on the number of workers: a killed
training resumes from its last checkpoint, with any number of workers, and ends where it would have ended.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import ray.train
import torch

from actors.modeling.train_task import TrainTask
from actors.training.collectives import AgreedError, barrier, summed, summed_modulo
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.divergence import NORM_EVERY, Diverged, diverged, is_norm, not_finite
from actors.training.early_stopping import EarlyStopping
from actors.training.forwards import rounds
from actors.training.kept_checkpoints import KeptCheckpoints
from actors.training.label_use import measure_label_use
from actors.training.metrics import MetricsLogger, peak_memory_bytes
from actors.training.precision import with_precision
from actors.training.preemption import Preemption
from actors.training.save_model import require_savable, save_trained_model
from actors.training.settings import LearnerSettings, Tracking, rate_factor
from actors.training.shares import Share, Shares
from actors.training.start_engine import start_engine
from actors.training.train_state import TrainState
from data.examples import digest_of
from data.label_use import LabelProbe
from data.lease import Fence, current_fence
from data.loader import DataLoader, PackedStep
from data.run_layout import TRAINING, write_record
from data.stage_metrics import LossPoint, TrainingMetrics
from data.storage import Storage

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
    probes: tuple[LabelProbe, ...] = ()
    """Held-out answers that show which labels a policy reads."""
    fence: Fence | None = field(default_factory=current_fence)
    features_uri: str = ""
    """Folder for the features of a frozen backbone, which fits on other examples share."""


class Training:
    """One worker's part of the training."""

    def __init__(self, assignment: Assignment):
        self.settings, self.loader = assignment.settings, assignment.loader
        self.task = replace(assignment.task, packing=self.settings.packing == "on")
        self.probes, self.output = assignment.probes, Storage(assignment.output_uri)
        settings, context = assignment.settings, ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        torch.manual_seed(settings.seed)
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
        self.kept = KeptCheckpoints(self.output, (self.rank, self.world), settings.keep_checkpoints, assignment.fence)
        if not self.loader.corpus.shards:
            raise AgreedError(f"no examples to train on in {self.loader.corpus.uri}; check the rows and max_tokens")
        checkpoint = self.kept.resume()
        self.state = TrainState(**checkpoint.state) if checkpoint else TrainState()
        self.settings, line = with_precision(settings, self.state, assignment.what)
        self.engine = TrainingEngine(self.task, self.settings, self.rank, self.world)
        self.shares = Shares(self.task, self.settings, self.loader, self.engine.device, self.rank, self.world)
        require_savable(self.task, self.engine, self.output)
        self.early_stopping = EarlyStopping(settings.patience, **self.state.validations)
        self.validates = self.loader.split.has_validation
        self.trained_digest, self.cpu_s, self.rate = 0, 0.0, 0.0
        where, how = (assignment.what, self.output, assignment.tracking), (self.engine.device, self.settings.precision)
        self.logger = MetricsLogger(*where, self.world, *how, enabled=self.rank == 0)
        self.logger.log(line)
        self.logger.log(start_engine(self.task, self.engine, checkpoint, self.shares.first(START_STEPS)))
        corpus, epochs = self.loader.corpus, self.loader.epochs
        self.logger.log(f"{self.engine.describe()}; {corpus.num_rows:,} rows, {epochs} epochs")
        if checkpoint:
            at = f"step {self.state.step}, {self.state.progress:.2f} epochs"
            self.logger.log(f"goes on after {at}, from {checkpoint.folder.uri}")
            checkpoint.close()

    def run(self) -> TrainingMetrics:
        """Train to the end, or until a stop is requested; returns the metrics."""
        preemption = Preemption(self.output, self.rank, self.settings.checkpoint_every_s)
        self.cpu_s = -time.process_time()
        loss = 0.0
        for step, share in self.shares.steps(self.state.next_step, self.state.step):
            before = self.state.progress
            requests = preemption.requested(self.do(step, share), float(not is_norm(self._norm())))
            loss = self._finite(*requests.sums)
            if step.progress == self.loader.epochs:
                break
            if self.state.step % self._log_every() == 0:
                self.log(loss)
            if self.validates and _crossed(before, step.progress, self.settings.validate_every):
                self.validate(last=False)
            if self.early_stopping.should_stop:
                self.logger.log(self.early_stopping.reason())
                return self.finish()
            if requests.saves or requests.due or _crossed(before, step.progress, self.settings.checkpoint_every):
                self.checkpoint(wait=requests.saves)
                preemption.saved()
            if requests.ends:
                self.logger.log(f"stop requested: the training ends after step {self.state.step}")
                return self.metrics()
        if not self.state.step:
            raise AgreedError(
                f"no examples to train on in {self.loader.corpus.uri}: all are held out or rejected; "
                "lower validation_share, or check max_tokens"
            )
        self.log(loss)
        if self.validates:
            self.validate(last=True)
        self._count_trained()
        self.logger.log(self.state.audit())
        return self.finish()

    def do(self, step: PackedStep, share: Share) -> float:
        """One optimizer step; returns this worker's share of its mean loss."""
        started = time.perf_counter()
        settings, state, examples = self.settings, self.state, step.examples
        assert share.weight > 0, "a step without a single target"
        progress = step.middle / self.loader.epochs
        self.rate = settings.learning_rate * rate_factor(settings.schedule, progress, settings.warmup)
        if step.is_first:
            digest = digest_of(examples.ids[i] for i in self.loader.drawn(examples, step.epoch))
            state.expected_digest = (state.expected_digest + digest) % 2**64
        self.packs, self.trained_digest = share.packs, self.trained_digest + share.digest
        loss = self.engine.step(self.packs, share.weight, self.rate)
        seconds = time.perf_counter() - started + share.seconds
        state.add(step, settings.pack_tokens, share.weight, seconds)
        squares = sum(float(examples.lengths[i]) ** 2 for pack in step.packs for i in pack)
        self.logger.count(
            step.num_tokens, self.engine.arithmetic.flops(step.num_tokens, share.weight, squares), seconds
        )
        return loss

    def _norm(self) -> float:
        """The gradient's, as often as it costs little to know; else 0."""
        looks = self.engine.knows_norm or self.state.step % NORM_EVERY == 0
        return self.engine.gradient_norm if looks else 0.0

    def _finite(self, loss: float, bad_norms: float) -> float:
        """The mean loss; raises Diverged unless it and the gradient are finite. All workers decide the same."""
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", self._loss_parts())
        if bad_norms:
            raise self._diverged("the gradient is not finite", self._loss_parts())
        return loss

    def _diverged(self, number: str, parts: Mapping[str, float] | None = None) -> Diverged:
        return diverged(number, self.state.step, self.rate, self.settings, not_finite(parts or {}))

    @torch.no_grad()
    def _loss_parts(self) -> dict[str, float]:
        """The parts of the last step's loss, over all workers."""
        if self.settings.zero_stage == 3:
            return {}  # a forward needs all workers there, and they may have unequal packs
        names, own = self.task.parts, list[dict[str, float]]()
        with contextlib.suppress(Exception):  # it only adds to a message
            own = [self.task.loss_parts(self.engine.module, pack.inputs) for pack in self.packs]
        return dict(zip(names, summed(*(sum(part[name] for part in own) for name in names)), strict=True))

    def _log_every(self) -> int:
        """In steps; the same on all workers."""
        expected = self.state.step / self.state.progress * self.loader.epochs
        return max(1, min(STEPS_PER_LINE, int(expected / LINES)))

    def log(self, loss: float) -> None:
        """Log and record the mean loss of all workers."""
        self.logger.step(self.state, self.loader.epochs, loss, self.rate, self.engine.gradient_norm)
        self.state.losses.append({"step": self.state.step, "loss": round(loss, 5), "learning_rate": self.rate})

    def validate(self, last: bool) -> None:
        """Mean loss over all validation targets; keeps the weights of the best step. Every worker takes part."""
        cpu_started = time.process_time()
        loss = self._validation_loss()
        self.cpu_s -= time.process_time() - cpu_started
        if loss is None:
            return
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}")
        improved = self.early_stopping.add(self.state.step, loss)
        # The last step's weights need no copy: they are the live ones.
        if improved and not last:
            self.kept.best.save(self.state.step, {"weights": self.engine.weights()}, None)
        self.logger.validated(self.state, loss, improved)

    def _validation_loss(self) -> float | None:
        """None if no example of a small set is held out and no decision depends on the loss."""
        self.engine.validating(True)
        total = weight = 0.0
        for examples, step in self.loader.validation(self.world):
            for packs in rounds(step, self.task.packing):
                mine = packs[self.rank]
                # Every worker runs as many forwards as the others: ZeRO-3 needs that.
                loss = self.engine.loss(self.shares.inputs(examples, mine or next(filter(None, packs))))
                total += loss if mine else 0.0
                weight += self.shares.weight(examples, [mine])
        self.engine.validating(False)
        total, weight = summed(total, weight)
        if not weight and self.settings.validate_every:
            raise AgreedError(
                f"validate_every is {self.settings.validate_every:g}, but no example is held out to validate on; "
                "raise validation_share, or set validate_every and patience to 0"
            )
        return total / weight if weight else None

    def _count_trained(self) -> None:
        """Add what all workers trained on since the last call to the state's digest."""
        self.state.trained_digest = (self.state.trained_digest + summed_modulo(self.trained_digest)) % 2**64
        self.trained_digest = 0

    def checkpoint(self, wait: bool) -> None:
        """Save weights, moments and state; every worker takes part. Raises Diverged if the gradient is not finite."""
        if not is_norm(self.engine.gradient_norm):
            raise self._diverged("the gradient is not finite")
        self._count_trained()
        self.state.validations = self.early_stopping.state()
        shards = {"weights": self.engine.weights(), **self.engine.moments()}
        self.kept.newest.save(self.state.step, shards, asdict(self.state))
        if wait:
            self.kept.newest.wait()
            barrier()  # the first worker has marked it complete

    def metrics(self, cpu_seconds: float = 0.0) -> TrainingMetrics:
        """The metrics of the training so far, without its loss curve."""
        timing, memory = self.kept.newest.timing.metrics(), (self.engine.held, peak_memory_bytes(self.engine.device))
        workers = self.settings.zero_stage, self.world
        return self.state.metrics(self.early_stopping, timing, *workers, *memory, cpu_seconds)

    def finish(self) -> TrainingMetrics:
        """Save the model of the best step and the metrics; remove the checkpoints."""
        self.kept.wait()
        self.cpu_s += time.process_time()
        [cpu_s] = summed(self.cpu_s)
        best = self.early_stopping.best_step
        kept = self.kept.best_weights(best) if best not in (0, self.state.step) else None
        if best not in (0, self.state.step) and kept is None:
            self.logger.log(f"warning: the weights of step {best} were not kept; those of the last step are saved")
            self.early_stopping.best_step, self.early_stopping.best_loss = 0, float("inf")
        use = measure_label_use(self.probes, self.task, self.engine)
        metrics = self.metrics(cpu_s).model_copy(update={"label_use": use})
        self.kept.newest.require_owner()
        target, fence = self.output / "model", self.kept.newest.fence
        save_trained_model(self.task, self.engine, kept, target, self.state.step, self.rate, fence)
        if self.rank == 0:
            losses = tuple(LossPoint.model_validate(point) for point in self.state.losses)
            write_record(self.output / TRAINING, metrics.model_copy(update={"losses": losses}))
            self.kept.remove()
        self.logger.close()
        barrier()  # no worker ends before the model is saved
        return metrics


def _crossed(before: float, after: float, every: float) -> bool:
    """Did progress pass a multiple of `every`?"""
    return every > 0 and int(after / every + 1e-9) > int(before / every + 1e-9)
