"""The Ray Train worker: one DeepSpeed training loop, for language model, predictor and policy alike.

It is given a task (what to build, what the loss is) and a feed (tokenised examples); it knows neither prompts nor jobs.
The loss of a step is the mean over the target tokens (or labels) of the *global* batch, whatever ranks and accumulation.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from actors.learner_settings import LearnerSettings, deepspeed_config
from actors.lora import add_adapters, merged
from actors.validations import Validations
from actors.weights import WeightsOnDisk, gathered
from data.feed import Example, Feed
from data.storage import Storage

START_STEPS = 512
"""As many steps' examples a task is shown before the first step: enough for heads in closed form, and a small share of a long training."""


class Task(Protocol):
    """What is trained. Travels to the workers."""

    def build(self) -> torch.nn.Module:
        """A module whose forward(**inputs) is the summed loss of a packed row, with the network as `model` and the names of its `heads`."""
        ...

    def start(self, module: torch.nn.Module, rows: Iterable[dict[str, Any]]) -> str:
        """Set what can be set before the first step, from this rank's share of the examples as packed rows; returns what to say of it."""
        ...

    def inputs(self, examples: Sequence[Example], device: torch.device | str) -> dict[str, Any]: ...

    def target_weight(self, example: Example) -> float:
        """What an example counts in the mean: its trained tokens, or the weights of its valid labels."""
        ...

    def save(self, module: torch.nn.Module, state: Mapping[str, torch.Tensor], folder: str) -> None: ...


@dataclass(frozen=True)
class Assignment:
    """Everything a worker is told; crosses the process boundary once."""

    task: Task
    settings: LearnerSettings
    examples_uri: str
    output_uri: str
    """Folder that gets `model/` and `training.json`."""
    buckets: int = 0
    """One of so many buckets of groups is held out; 0 = none."""
    held_out: int = 0
    """Which one."""
    validation_buckets: int = 0
    """0 = validate on the bucket held out; else on one of so many drawn from the other groups, and the bucket held out stays unseen."""


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker loop: train, validate, save the model under `output_uri`, report figures."""
    run = _Run(config["assignment"])
    for step, rows in enumerate(run.steps(), start=1):
        loss = run.step(rows)
        if step % run.log_every == 0 or step == run.num_steps:
            run.log(step, loss)
        if run.validates_at(step):
            run.validate(step)
        if run.validations.should_stop:
            run.say(f"stopped early: the last {run.settings.patience} validations were no better than that of step {run.validations.best_step}")
            break
    figures = run.figures(step)
    run.save(figures | {"losses": run.losses})
    ray.train.report(figures)


class _Run:
    """One worker's engine, its share of each step, and its counters."""

    def __init__(self, assignment: Assignment):
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        settings = assignment.settings
        self.assignment, self.settings, self.task = assignment, settings, assignment.task
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        torch.manual_seed(settings.seed)
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
        self._read_feed()
        self.plan = [list(self._epoch(e)) for e in range(settings.epochs)]
        self.num_steps = sum(len(epoch) for epoch in self.plan)
        self.log_every = max(1, self.num_steps // 30)
        self.validate_steps = max(1, round(settings.validate_every * len(self.plan[0])))
        self._start_engine()
        self.started, self.tokens, self.target_weight = time.perf_counter(), 0, 0.0
        self.recent_started, self.recent_tokens, self.validation_seconds = self.started, 0, 0.0
        self.losses: list[dict[str, float]] = []
        self.validations, self.best = Validations(settings.patience), WeightsOnDisk()

    def _read_feed(self) -> None:
        assignment = self.assignment
        self.feed = Feed(Storage(assignment.examples_uri).tables())
        self.train, self.validation = self.feed.split(assignment.buckets, assignment.held_out, assignment.validation_buckets)
        if not self.train:
            raise ValueError(f"no examples to train on in {assignment.examples_uri} (rejected: {self.feed.rejected}); check the rows and max_tokens")
        if self.settings.validate_every and not self.validation:
            raise ValueError(
                f"validate_every is {self.settings.validate_every:g}, but none of the {len(self.feed)} examples is held out to validate on; "
                "raise validation_share, or set validate_every and patience to 0"
            )

    def _start_engine(self) -> None:
        import deepspeed

        settings, config = self.settings, deepspeed_config(self.settings, self.world)
        self.module = self._build(config)
        if settings.zero_stage < 3:  # sharded weights cannot run before there is an engine; jobs.preset refuses what would need it
            self._start_module()
        trained = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
        self.engine, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=config, lr_scheduler=_schedule(settings, optimizer, self.num_steps), dist_init_required=False
        )
        self.engine.train()
        self.device = self.engine.device
        total, of_these = (sum(getattr(p, "ds_numel", p.numel()) for p in parameters) for parameters in (self.module.parameters(), trained))
        self.say(
            f"DeepSpeed {deepspeed.__version__} {type(self.engine).__name__}: ZeRO stage {self.engine.zero_optimization_stage()}, {self.world} workers on "
            f"{self.device}, {settings.precision}, {total:,} parameters, {of_these:,} of them trained; "
            f"{len(self.train)} examples to train on, {len(self.validation)} to validate on, {self.num_steps} steps"
        )

    def _build(self, config: dict[str, Any]) -> Any:
        if self.settings.zero_stage == 3:
            # While this object lives, transformers creates weights sharded: a large model never lies whole in one process.
            from transformers.integrations import HfDeepSpeedConfig

            self._sharded_creation = HfDeepSpeedConfig(config)
        module: Any = self.task.build()
        if self.settings.lora:
            add_adapters(module.model, self.settings.lora, module.heads)
        return module

    @torch.no_grad()
    def _start_module(self) -> None:
        device = ray.train.torch.get_device()
        mine = (row for rows in self.plan[0][:START_STEPS] for row in rows[self.rank :: self.world] if row)
        self.module.to(device).eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            said = self.task.start(self.module, (self.task.inputs([self.feed[i] for i in row], device) for row in mine))
        if said:
            self.say(said)

    def _epoch(self, epoch: int) -> Iterator[list[list[int]]]:
        settings = self.settings
        return self.feed.epoch(self.train, settings.row_tokens, settings.rows_per_step, settings.seed, epoch)

    def steps(self) -> Iterator[list[list[int]]]:
        for epoch in self.plan:
            yield from epoch

    @property
    def train_seconds(self) -> float:
        return time.perf_counter() - self.started - self.validation_seconds

    def step(self, rows: list[list[int]]) -> float:
        """One optimizer step; returns this rank's share of the step's mean loss."""
        weight = self._weight(rows)
        assert weight > 0, "a step without a single target"
        mine = rows[self.rank :: self.world]
        total = 0.0
        for row in mine:
            loss = self._loss(row)
            total += loss.item()
            # DeepSpeed averages over ranks and accumulation; undone here, so that the mean is over all targets of the step.
            self.engine.backward(loss * (self.world * len(mine) / weight))
            self.engine.step()
        tokens = sum(int(self.feed.lengths[i]) for row in rows for i in row)
        self.tokens += tokens
        self.recent_tokens += tokens
        self.target_weight += weight
        return total / weight

    def _weight(self, rows: list[list[int]]) -> float:
        return sum(self.task.target_weight(self.feed[i]) for row in rows for i in row)

    def _loss(self, row: list[int]) -> torch.Tensor:
        """Summed loss of a packed row; an empty row (the last step's filling) runs the shortest example at weight 0."""
        if row:
            loss: torch.Tensor = self.engine(**self.task.inputs([self.feed[i] for i in row], self.device))
            return loss
        shortest = min(self.train[:256], key=lambda i: int(self.feed.lengths[i]))
        return self.engine(**self.task.inputs([self.feed[shortest]], self.device)) * 0.0

    def log(self, step: int, loss: float) -> None:
        """Say and note where we are; every rank takes part."""
        mean = torch.tensor(loss, dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(mean)
        now = time.perf_counter()
        speed = self.recent_tokens / max(now - self.recent_started, 1e-9)
        self.recent_started, self.recent_tokens = now, 0
        eta_s = self.train_seconds / step * (self.num_steps - step)
        rate, norm = self.engine.get_lr()[0], float(self.engine.get_global_grad_norm() or 0)
        self.say(f"step {step}/{self.num_steps}  loss {mean.item():.4f}  lr {rate:.2e}  gradient {norm:.2f}  {speed:,.0f} tokens/s  ETA {eta_s:.0f} s")
        self.losses.append({"step": step, "loss": round(mean.item(), 5), "learning_rate": rate})

    def validates_at(self, step: int) -> bool:
        if not self.validation:
            return False
        return step == self.num_steps or (self.settings.validate_every > 0 and step % self.validate_steps == 0)

    def validate(self, step: int) -> None:
        """Mean loss over all targets to validate on; keeps the weights if it is the best so far. Every rank takes part."""
        started = time.perf_counter()
        loss = self._validation_loss()
        improved = self.validations.add(step, loss)
        # The last step's weights need no copy: they are the live ones.
        if improved and step < self.num_steps:
            state = self._gathered(trained=True)
            if self.rank == 0:
                self.best.keep(state)
        self.say(f"step {step}/{self.num_steps}  validation loss {loss:.5f}{', the best so far' if improved else ''}")
        seconds = time.perf_counter() - started
        self.validation_seconds += seconds
        self.recent_started += seconds

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Every rank runs as many forwards as the others (ZeRO-3 needs that)."""
        self.engine.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in self.feed.epoch(self.validation, self.settings.row_tokens, self.world, seed=0, epoch=0):
            row = rows[self.rank]
            sums[0] += self._loss(row).item()
            sums[1] += self._weight([row])
        if dist.is_initialized():
            dist.all_reduce(sums)
        self.engine.train()
        return float(sums[0] / sums[1])

    def figures(self, step: int) -> dict[str, Any]:
        """What the training has come to after `step` steps."""
        settings, validations = self.settings, self.validations
        return {
            "zero_stage": settings.zero_stage,
            "num_workers": self.world,
            "steps": step,
            "planned_steps": self.num_steps,
            "epochs": settings.epochs,
            "num_train": len(self.train),
            "num_validation": len(self.validation),
            "tokens": self.tokens,
            "target_weight": round(self.target_weight, 3),
            "tokens_per_s": round(self.tokens / self.train_seconds, 1),
            "train_seconds": round(self.train_seconds, 1),
            "saved_step": validations.best_step or step,
            "validation_loss": validations.best_loss if validations.best_step else None,
            "validations": validations.curve,
        }

    def save(self, figures: dict[str, Any]) -> None:
        """Gather the weights of the step to save on the first rank and publish the model folder and the figures."""
        state = self._state(live=figures["saved_step"] == figures["steps"])
        if self.rank == 0:
            if self.settings.lora:
                state = merged(self.module, state)
            with tempfile.TemporaryDirectory() as folder:
                self.task.save(self.module, state, folder)
                (Storage(self.assignment.output_uri) / "model").upload(folder)
            (Storage(self.assignment.output_uri) / "training.json").write_json(figures)
        self.best.remove()
        if dist.is_initialized():
            dist.barrier()

    def _state(self, live: bool) -> dict[str, torch.Tensor]:
        """All weights on the first rank: the live ones, or the best step's from disk with what was never trained."""
        frozen = self._gathered(trained=False)
        trained = self._gathered(trained=True) if live else self.best.load() if self.rank == 0 else {}
        return frozen | trained

    def _gathered(self, trained: bool) -> dict[str, torch.Tensor]:
        return gathered(self.module, self.settings.zero_stage, self.rank, trained)

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


def _schedule(settings: LearnerSettings, optimizer: torch.optim.Optimizer, num_steps: int) -> Any:
    from transformers import get_scheduler

    return get_scheduler(settings.schedule, optimizer, num_warmup_steps=int(settings.warmup * num_steps), num_training_steps=num_steps)
