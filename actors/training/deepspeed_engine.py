"""A module under DeepSpeed: built, wrapped, stepped, and restored from a checkpoint. Knows no data and no order.

The loss of a step is the mean over the targets of the *global* batch, whatever the workers and whatever each has of it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train.torch
import torch
import torch.distributed as dist

from actors.kernels.onednn import train_with_onednn
from actors.modeling.lora import add_adapters
from actors.modeling.train_task import TrainTask
from actors.training.checkpointer import Checkpoint
from actors.training.flops import Arithmetic
from actors.training.settings import LearnerSettings, deepspeed_config
from actors.training.zero_shards import (
    MOMENTS,
    ZeroShard,
    held_bytes,
    moment_shards,
    restore_moments,
    restore_weights,
    trained,
    weight_shards,
)


@dataclass(frozen=True)
class Pack:
    """One forward."""

    inputs: dict[str, Any]
    seed: int
    """What its dropout is drawn from: the same on whichever worker it runs."""
    counts: bool = True
    """False = only so that every worker runs as many."""


class TrainingEngine:
    """One worker's share of the model and of its optimizer."""

    def __init__(self, task: TrainTask, settings: LearnerSettings, rank: int, world: int):
        """Builds the module; raises UserError as `task.build` does."""
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        import deepspeed

        # An operator for inference, which every first start on a CPU would wait half a minute for a compiler to build;
        # a worker killed in mid-compile would leave a lock on which all later ones wait.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.settings, self.rank, self.world = settings, rank, world
        self.device = ray.train.torch.get_device()
        self._config = deepspeed_config(settings)
        if settings.zero_stage == 3:
            # While this object lives, transformers creates weights sharded: a large model never lies whole in one process.
            from transformers.integrations import HfDeepSpeedConfig

            self._sharded_creation = HfDeepSpeedConfig(self._config)
        self.module: Any = task.build()
        if settings.lora:
            add_adapters(self.module.model, settings.lora, self.module.heads)
        if settings.activation_checkpointing:
            self.module.model.gradient_checkpointing_enable({"use_reentrant": False})
        # ZeRO-3 brings its own products, which fetch the weights.
        if self.device.type == "cpu" and settings.precision == "fp32" and settings.zero_stage < 3:
            train_with_onednn(self.module)
        self.held: dict[str, int] | None = None
        """What this worker holds of the model, in bytes (see `held_bytes`); known after the second step."""
        self._steps = 0
        self.arithmetic = Arithmetic.of(self.module.model)

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Wrap the module; with a snapshot, go on with its weights and moments."""
        import deepspeed

        settings = self.settings
        if checkpoint:
            restore_weights(self.module, settings.zero_stage, self.rank, _source(checkpoint, "weights"))
        self.trained = [p for _, p in trained(self.module)]
        self.engine, *_ = deepspeed.initialize(
            model=self.module, optimizer=self._optimizer(), config=self._config, dist_init_required=False
        )
        if checkpoint:
            restore_moments(
                self.engine,
                checkpoint.state["step"],
                self.rank,
                {moment: _source(checkpoint, moment) for moment in MOMENTS},
            )
        self.engine.train()

    def _optimizer(self) -> torch.optim.Optimizer:
        arguments: dict[str, Any] = {
            "lr": self.settings.learning_rate,
            "weight_decay": self.settings.weight_decay,
            "betas": (0.9, 0.98),
        }
        if self.settings.offload == "none":
            return torch.optim.AdamW(self.trained, **arguments)
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(self.trained, adamw_mode=True, **arguments)
        return optimizer

    def describe(self) -> str:
        import deepspeed

        total, of_these = (
            sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
            for parameters in (self.module.parameters(), self.trained)
        )
        offload = "" if self.settings.offload == "none" else f", {self.settings.offload} on the CPU"
        return (
            f"DeepSpeed {deepspeed.__version__} {type(self.engine).__name__}: ZeRO stage {self.engine.zero_optimization_stage()}{offload}, "
            f"{self.world} workers on {self.device}, {self.settings.precision}, {total:,} parameters, {of_these:,} of them trained"
        )

    def step(self, rows: Sequence[Pack], weight: float, rate: float) -> float:
        """One optimizer step over this worker's rows; returns their summed loss over `weight`.

        `weight` is that of the targets of all workers' rows; `rate` is the learning rate. Every worker must give as many rows.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for row in rows:
            torch.manual_seed(row.seed)
            loss = self.engine(**row.inputs) * float(row.counts)
            total += loss.item()
            self.engine.set_gradient_accumulation_boundary(row is rows[-1])
            # DeepSpeed takes the mean over workers; undone here, so that the mean is over all targets of the step.
            self.engine.backward(loss * (self.world / weight))
        if self.held is None and self._steps == 1:  # the first step has made the moments
            self.held = held_bytes(self.engine)
        self._steps += 1
        self.engine.step()
        return total / weight

    @torch.no_grad()
    def loss(self, row: dict[str, Any]) -> float:
        """The summed loss of a row, without learning from it."""
        loss: torch.Tensor = self.engine(**row)
        return loss.item()

    def validating(self, on: bool) -> None:
        self.engine.train(not on)

    @property
    def gradient_norm(self) -> float:
        """Of the last step, before clipping."""
        return float(self.engine.get_global_grad_norm() or 0)

    def weights(self) -> Iterator[ZeroShard]:
        """This worker's share of the trained weights."""
        return weight_shards(self.module, self.settings.zero_stage, self.rank, self.world)

    def moments(self) -> dict[str, Iterator[ZeroShard]]:
        """This worker's share of the optimizer's moments, by name."""
        return {moment: moment_shards(self.engine, moment, self.rank) for moment in MOMENTS}

    def gathered(self, trained: bool) -> dict[str, torch.Tensor]:
        """Weights on the CPU of the first worker, nothing elsewhere: those that are trained, or those that are frozen.

        Under ZeRO-3 one parameter at a time, and every worker takes part. Below, tensors may share memory with the live ones.
        """
        return gathered(self.module, self.settings.zero_stage, self.rank, trained)


def gathered(module: torch.nn.Module, zero_stage: int, rank: int, trained: bool) -> dict[str, torch.Tensor]:
    """See `Engine.gathered`."""
    # A tied weight has two names in a state dictionary: both belong to the same half.
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    if zero_stage < 3:
        state = module.state_dict() if rank == 0 else {}
        return {k: v.detach().cpu().contiguous() for k, v in state.items() if (k not in frozen) == trained}
    import deepspeed

    found = {}
    for name, parameter in module.named_parameters():
        if (name not in frozen) == trained:
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank == 0:
                    found[name] = parameter.detach().cpu().clone()
    return found


def summed(*values: float) -> list[float]:
    """Each value's sum over all workers."""
    sums = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return [float(v) for v in sums]


def summed_modulo(value: int) -> int:
    """The sum over all workers of non-negative integers, modulo 2**64."""
    # Halves of 32 bits, so that no sum overflows.
    halves = torch.tensor([value % 2**32, value // 2**32 % 2**32], dtype=torch.int64)
    if dist.is_initialized():
        dist.all_reduce(halves)
    low, high = halves.tolist()
    return int(low + (high << 32)) % 2**64


def from_first(value: Any) -> Any:
    """The first worker's value, on every worker."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def _source(checkpoint: Checkpoint, kind: str) -> Any:
    return lambda name, start, num: checkpoint.values(kind, name, start, num)
