"""A module under DeepSpeed: built, wrapped, stepped, and restored from a checkpoint. Knows no data and no order.

The loss of a step is the mean over the targets of the *global* batch, whatever share of it each worker has.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from actors.kernels.compiled import compile_layers
from actors.kernels.devices import own_device
from actors.kernels.experts import use_grouped_experts
from actors.kernels.norms import use_fused_norms
from actors.kernels.onednn import train_with_onednn
from actors.kernels.varlen import kernel_name
from actors.modeling.lora import add_adapters
from actors.modeling.train_task import TrainTask
from actors.training.checkpoint import Checkpoint
from actors.training.collectives import limit_waiting
from actors.training.flops import Arithmetic, num_elements
from actors.training.settings import BUCKET_ELEMENTS, LearnerSettings, deepspeed_config
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
    """A packed sequence: one forward."""

    inputs: dict[str, Any]
    seed: int
    """Of its dropout: the same on whichever worker it runs."""
    counts: bool = True
    """False = a filler, so that every worker runs as many packs."""


class TrainingEngine:
    """One worker's share of the model and of its optimizer."""

    def __init__(self, task: TrainTask, settings: LearnerSettings, rank: int, world: int):
        """Builds the module; raises UserError as `task.build` does."""
        self.device = own_device()
        use_accelerator(self.device)
        self.settings, self.rank, self.world = settings, rank, world
        self._config = deepspeed_config(settings)
        if settings.zero_stage == 3:
            # While this object lives, transformers creates weights sharded: no process ever holds a large model whole.
            from transformers.integrations import HfDeepSpeedConfig

            self._sharded_creation = HfDeepSpeedConfig(self._config)
        self.module: Any = task.build()
        if settings.lora:
            add_adapters(self.module.model, settings.lora, self.module.heads)
        if settings.activation_checkpointing:
            self.module.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._use_kernels()
        self.held: dict[str, int] | None = None
        """Bytes of the model on this worker (see `held_bytes`); known after the second step."""
        self._steps = 0
        self._norm: float | torch.Tensor = 0.0
        self.arithmetic = Arithmetic.of(self.module.model)

    def _use_kernels(self) -> None:
        settings = self.settings
        use_grouped_experts()
        if self._on_gpu_or_set(settings.fused_norms):
            use_fused_norms(self.module.model)
        if settings.compile_layers:
            compile_layers(self.module.model)
        # ZeRO-3 brings its own products, which fetch the weights; the compiler brings its own as well.
        elif self.device.type == "cpu" and settings.precision == "fp32" and settings.zero_stage < 3:
            train_with_onednn(self.module)

    def _on_gpu_or_set(self, setting: bool | None) -> bool:
        return self.device.type == "cuda" if setting is None else setting

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Wrap the module; a checkpoint restores weights and moments."""
        import deepspeed

        settings = self.settings
        if checkpoint:
            restore_weights(self.module, settings.zero_stage, self.rank, _source(checkpoint, "weights"))
        self.trained = [p for _, p in trained(self.module)]
        # The buffer for gradients on their way to other workers has its full size also where they are fewer.
        self._config["zero_optimization"]["reduce_bucket_size"] = min(
            BUCKET_ELEMENTS, sum(map(num_elements, self.trained))
        )
        self.engine, *_ = deepspeed.initialize(
            # Without it DeepSpeed takes the GPU with this worker's number on the node, whichever Ray assigned.
            args=SimpleNamespace(device_rank=self.device.index or 0),
            model=self.module,
            optimizer=self._optimizer(),
            config=self._config,
            dist_init_required=False,
        )
        limit_waiting(settings.collective_timeout_s)
        if checkpoint:
            sources = {moment: _source(checkpoint, moment) for moment in MOMENTS}
            restore_moments(self.engine, checkpoint.state["step"], self.rank, sources)
        self.engine.train()

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        arguments: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        arguments["betas"] = (0.9, 0.98)
        if settings.offload == "none":
            return torch.optim.AdamW(self.trained, **arguments, fused=self._on_gpu_or_set(settings.fused_adamw) or None)
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(self.trained, adamw_mode=True, **arguments)
        return optimizer

    def describe(self) -> str:
        import deepspeed

        total, trained = (sum(map(num_elements, ps)) for ps in (self.module.parameters(), self.trained))
        offload = "" if self.settings.offload == "none" else f", {self.settings.offload} on the CPU"
        stage = f"ZeRO stage {self.engine.zero_optimization_stage()}{offload}"
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        attention = kernel_name(self.module.model.config, self.device, dtype, backward=True)
        return (
            f"DeepSpeed {deepspeed.__version__} {type(self.engine).__name__}: {stage}, {self.world} workers on "
            f"{self.device}, {self.settings.precision}, {total:,} parameters, {trained:,} of them trained; "
            f"attention: {attention}"
        )

    def step(self, packs: Sequence[Pack], weight: float, rate: float) -> float:
        """One optimizer step over this worker's packs; returns their summed loss over `weight`.

        `weight` is that of all workers' targets; `rate` is the learning rate. All workers must have as many packs.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for pack in packs:
            torch.manual_seed(pack.seed)
            loss = self.engine(**pack.inputs) * float(pack.counts)
            losses.append(loss.detach())
            self.engine.set_gradient_accumulation_boundary(pack is packs[-1])
            # DeepSpeed takes the mean over workers; undone here, so that the mean is over all targets of the step.
            self.engine.backward(loss * (self.world / weight))
        if self.held is None and self._steps == 1:  # the first step has made the moments
            self.held = held_bytes(self.engine)
        self._steps += 1
        # Without ZeRO the optimizer is PyTorch's own, which tells no norm, and DeepSpeed keeps none.
        plain = not hasattr(self.engine.optimizer, "_global_grad_norm")
        if plain:
            self._norm = get_total_norm([p.grad for p in self.trained if p.grad is not None])
        self.engine.step()
        if not plain:
            self._norm = self.engine.get_global_grad_norm() or 0.0
        # The only wait for the device: with one for each pack a GPU would idle while the next pack is launched.
        return sum(torch.stack(losses).tolist()) / weight

    @torch.no_grad()
    def loss(self, inputs: dict[str, Any]) -> float:
        """The summed loss of a pack, without learning from it."""
        loss: torch.Tensor = self.engine(**inputs)
        return loss.item()

    def validating(self, on: bool) -> None:
        self.engine.train(not on)

    @property
    def knows_norm(self) -> bool:
        """Is the gradient's norm on the host already? ZeRO's optimizers look at it in each step."""
        return self.settings.zero_stage > 0 or self.device.type == "cpu"

    @property
    def gradient_norm(self) -> float:
        """Of the last step, before clipping."""
        return float(self._norm)

    def weights(self) -> Iterator[ZeroShard]:
        """This worker's share of the trained weights."""
        return weight_shards(self.module, self.settings.zero_stage, self.rank, self.world)

    def moments(self) -> dict[str, Iterator[ZeroShard]]:
        """This worker's share of the optimizer's moments, by name."""
        return {moment: moment_shards(self.engine, moment, self.rank) for moment in MOMENTS}


def use_accelerator(device: torch.device) -> None:
    """Let DeepSpeed run on `device`; left alone, it takes a GPU wherever torch sees one."""
    os.environ["DS_ACCELERATOR"] = device.type  # read when deepspeed is imported
    import deepspeed

    if deepspeed.get_accelerator().device_name() != device.type:  # imported before, by another library
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
        from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

        set_accelerator({"cpu": CPU_Accelerator, "cuda": CUDA_Accelerator}[device.type]())
    # An operator for inference: the first start on a CPU would compile it for half a minute, and a worker killed
    # meanwhile would leave a lock that blocks all later ones.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _source(checkpoint: Checkpoint, kind: str) -> Any:
    return lambda name, start, num: checkpoint.values(kind, name, start, num)
