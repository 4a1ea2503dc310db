"""The Ray Train worker: one DeepSpeed training loop, for language model, predictor and policy alike.

It is given a task (what to build, what the loss is) and a feed (tokenised examples); it knows neither prompts nor jobs.
The loss of a step is the mean over the target tokens (or labels) of the *global* batch, whatever ranks and accumulation.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray.train
import torch
import torch.distributed as dist
from pydantic import Field

from data.feed import Example, Feed
from data.record import Record
from data.storage import Storage


class LearnerSettings(Record):
    """How a model is trained."""

    num_workers: int = Field(1, ge=1)
    """Ray Train workers, one model replica or ZeRO shard each."""
    cpus_per_worker: float = 1
    """CPUs (and CPU threads) per worker."""
    use_gpu: bool = False
    """One GPU per worker."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 parameters too."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward; weights and optimizer states stay fp32."""
    row_tokens: int = Field(1024, ge=2)
    """Token budget of one packed row, which is one forward."""
    rows_per_step: int = Field(8, ge=1)
    """Packed rows per optimizer step, over all workers; a multiple of num_workers."""
    max_tokens: int = Field(1024, ge=2)
    """Longest conversation; the oldest exchanges are cut first. At most row_tokens."""
    epochs: int = Field(1, ge=1)
    """Passes over the examples."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate; 5e-6 is SteerLM's for 13 B to 43 B (arXiv 2310.05344, A.3)."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """What the learning rate does after the warm-up."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay."""
    clip: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    seed: int = 0
    """Seed of initial heads and of the order of examples."""

    def model_post_init(self, _: Any) -> None:
        if self.rows_per_step % self.num_workers:
            raise ValueError(f"rows_per_step {self.rows_per_step} must be a multiple of num_workers {self.num_workers}")
        if self.max_tokens > self.row_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} must not exceed row_tokens {self.row_tokens}")


class Task(Protocol):
    """What is trained. Travels to the workers."""

    def build(self) -> torch.nn.Module:
        """A module whose forward(**inputs) is the summed loss of a packed row."""
        ...

    def inputs(self, examples: Sequence[Example], device: torch.device | str) -> dict[str, Any]: ...

    def num_targets(self, example: Example) -> int: ...

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
    """Validation holds out one of so many buckets of groups; 0 = none."""
    held_out: int = 0


def deepspeed_config(settings: LearnerSettings, num_workers: int) -> dict[str, Any]:
    """The DeepSpeed configuration that `settings` stand for."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.rows_per_step // num_workers,
        "gradient_clipping": settings.clip,
        "zero_optimization": {"stage": settings.zero_stage},
        # AdamW is torch's: the same numbers on every device, no kernel to compile.
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": settings.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker loop: train, validate, save the model under `output_uri`, report figures."""
    assignment: Assignment = config["assignment"]
    settings = assignment.settings
    run = _Run(assignment)
    points = []
    for step, rows in enumerate(run.steps(), start=1):
        loss = run.step(rows)
        if step % run.log_every == 0 or step == run.num_steps:
            points.append(run.log(step, loss))
    validation = run.validate()
    figures = {
        "zero_stage": settings.zero_stage,
        "num_workers": run.world,
        "steps": run.num_steps,
        "epochs": settings.epochs,
        "num_train": len(run.train),
        "num_validation": len(run.validation),
        "tokens": run.tokens,
        "targets": run.targets,
        "tokens_per_s": round(run.tokens / run.seconds, 1),
        "train_seconds": round(run.seconds, 1),
        "validation_loss": validation,
    }
    run.save(figures | {"losses": points})
    ray.train.report(figures)


class _Run:
    """One worker's engine, its share of each step, and its counters."""

    def __init__(self, assignment: Assignment):
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        import deepspeed

        settings = assignment.settings
        self.assignment, self.settings, self.task = assignment, settings, assignment.task
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        torch.manual_seed(settings.seed)
        torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
        self.feed = Feed(Storage(assignment.examples_uri).tables())
        self.train, self.validation = self.feed.split(assignment.buckets, assignment.held_out)
        if not self.train:
            raise ValueError(f"no examples to train on in {assignment.examples_uri} (rejected: {self.feed.rejected}); check the rows and max_tokens")
        self.plan = [list(self._epoch(e)) for e in range(settings.epochs)]
        self.num_steps = sum(len(epoch) for epoch in self.plan)
        self.log_every = max(1, self.num_steps // 30)
        config = deepspeed_config(settings, self.world)
        self.module = self._build(config)
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
        self.engine, *_ = deepspeed.initialize(
            model=self.module, optimizer=optimizer, config=config, lr_scheduler=_schedule(settings, optimizer, self.num_steps), dist_init_required=False
        )
        self.device = self.engine.device
        self.started, self.tokens, self.targets = time.perf_counter(), 0, 0
        self.recent, self.recent_started, self.recent_tokens = 0.0, self.started, 0
        self._say(
            f"DeepSpeed {deepspeed.__version__} {type(self.engine).__name__}: ZeRO stage {self.engine.zero_optimization_stage()}, {self.world} workers on "
            f"{self.device}, {settings.precision}, {sum(getattr(p, 'ds_numel', p.numel()) for p in self.module.parameters()):,} parameters; "
            f"{len(self.train)} examples to train on, {len(self.validation)} held out, {self.num_steps} steps"
        )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def _build(self, config: dict[str, Any]) -> torch.nn.Module:
        if self.settings.zero_stage < 3:
            return self.task.build()
        # While this object lives, transformers creates weights sharded: a large model never lies whole in one process.
        from transformers.integrations import HfDeepSpeedConfig

        self._sharded_creation = HfDeepSpeedConfig(config)
        return self.task.build()

    def _epoch(self, epoch: int) -> Iterator[list[list[int]]]:
        settings = self.settings
        return self.feed.epoch(self.train, settings.row_tokens, settings.rows_per_step, settings.seed, epoch)

    def steps(self) -> Iterator[list[list[int]]]:
        for epoch in self.plan:
            yield from epoch

    def step(self, rows: list[list[int]]) -> float:
        """One optimizer step; returns this rank's share of the step's mean loss."""
        targets = sum(self.task.num_targets(self.feed[i]) for row in rows for i in row)
        assert targets, "a step without a single target"
        mine = rows[self.rank :: self.world]
        total = 0.0
        for row in mine:
            loss = self._loss(row)
            total += loss.item()
            # DeepSpeed averages over ranks and accumulation steps; undo both, so that the mean is over all targets of the step.
            self.engine.backward(loss * (self.world * len(mine) / targets))
            self.engine.step()
        tokens = sum(int(self.feed.lengths[i]) for row in rows for i in row)
        self.tokens += tokens
        self.recent_tokens += tokens
        self.targets += targets
        return total / targets

    def _loss(self, row: list[int]) -> torch.Tensor:
        """Summed loss of a packed row; an empty row (the last step's filling) runs the shortest example at weight 0."""
        if row:
            loss: torch.Tensor = self.engine(**self.task.inputs([self.feed[i] for i in row], self.device))
            return loss
        shortest = min(self.train[:256], key=lambda i: int(self.feed.lengths[i]))
        return self.engine(**self.task.inputs([self.feed[shortest]], self.device)) * 0.0

    def log(self, step: int, loss: float) -> dict[str, float]:
        """Say where we are; every rank takes part."""
        mean = torch.tensor(loss, dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(mean)
        now = time.perf_counter()
        speed = self.recent_tokens / max(now - self.recent_started, 1e-9)
        self.recent_started, self.recent_tokens = now, 0
        eta_s = self.seconds / step * (self.num_steps - step)
        rate, norm = self.engine.get_lr()[0], float(self.engine.get_global_grad_norm() or 0)
        self._say(f"step {step}/{self.num_steps}  loss {mean.item():.4f}  lr {rate:.2e}  gradient {norm:.2f}  {speed:,.0f} tokens/s  ETA {eta_s:.0f} s")
        return {"step": step, "loss": round(mean.item(), 5), "learning_rate": rate}

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss over all targets held out; every rank runs as many forwards as the others (ZeRO-3 needs that)."""
        if not self.validation:
            return None
        self.engine.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in self.feed.epoch(self.validation, self.settings.row_tokens, self.world, seed=0, epoch=0):
            row = rows[self.rank]
            sums[0] += self._loss(row).item()
            sums[1] += sum(self.task.num_targets(self.feed[i]) for i in row)
        if dist.is_initialized():
            dist.all_reduce(sums)
        loss = float(sums[0] / sums[1]) if sums[1] else None
        self._say(f"validation loss {loss} over {len(self.validation)} examples")
        return loss

    def save(self, figures: dict[str, Any]) -> None:
        """Gather the weights on the first rank and publish the model folder and the figures."""
        state = self._gathered()
        if self.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                self.task.save(self.module, state, folder)
                (Storage(self.assignment.output_uri) / "model").upload(folder)
            (Storage(self.assignment.output_uri) / "training.json").write_json(figures)
        if dist.is_initialized():
            dist.barrier()

    def _gathered(self) -> dict[str, torch.Tensor]:
        """The whole module's weights on the CPU of rank 0; under ZeRO-3 one parameter at a time."""
        if self.settings.zero_stage < 3:
            return {k: v.detach().cpu().contiguous() for k, v in self.module.state_dict().items()} if self.rank == 0 else {}
        import deepspeed

        state = {}
        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


def _schedule(settings: LearnerSettings, optimizer: torch.optim.Optimizer, num_steps: int) -> Any:
    from transformers import get_scheduler

    return get_scheduler(settings.schedule, optimizer, num_warmup_steps=int(settings.warmup * num_steps), num_training_steps=num_steps)
