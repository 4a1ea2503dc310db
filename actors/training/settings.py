"""How a model is trained, and the DeepSpeed configuration for it. Knows no Ray and no training loop."""

import math
from typing import Any, ClassVar, Literal

from actors.modeling.settings import LoraSettings
from data.bounds import (
    Amount,
    Count,
    Cpus,
    Positive,
    PositiveSeconds,
    Repeats,
    Seconds,
    Seed,
    ShareBelowOne,
    Size,
    Times,
    TokenBudget,
    Workers,
)
from data.errors import UserError
from data.record import Record

PrecisionKind = Literal["auto", "bf16", "fp32"]
LabelSource = Literal["predicted", "human", "human_else_predicted", "none"]
Tracking = Literal["none", "mlflow", "wandb"]
BUCKET_ELEMENTS = 200_000_000
"""Most gradients that DeepSpeed sends at a time. Its buffers are of this size whatever the model's: .8 GB in fp32."""
LIVE_ELEMENTS = 1_000_000_000
"""Weights that ZeRO-3 keeps whole at most: DeepSpeed's default."""


class LearnerSettings(Record):
    """How a model is trained."""

    PLACEMENT: ClassVar[frozenset[str]] = (
        frozenset({"num_workers", "cpus_per_worker", "use_gpu", "labels", "zero_stage", "offload"})
        | {"activation_checkpointing", "memory_gib", "checkpoint_every", "checkpoint_every_s", "keep_checkpoints"}
        | {"max_failures", "min_workers", "collective_timeout_s", "packing", "fit"}
        | {"compile_layers", "fused_adamw", "fused_norms"}
    )
    """Settings that change only the order of sums in the result: a training may resume with other values.

    `precision` is none of them: bf16 rounds every product to 8 bits, and a model trained in it is another one. "auto"
    is the same setting on every machine, so that a run may move to another kind of CPU: a training's checkpoints keep
    what was chosen, and its metrics name it."""

    num_workers: Workers = 1
    """Ray Train workers, one model replica or ZeRO shard each; with min_workers, the most of them."""
    min_workers: Workers | None = None
    """Fewest workers that may train: while nodes are missing the training goes on with what is there, from its last
    checkpoint, and takes them back later. None = always num_workers; without them it waits."""
    cpus_per_worker: Cpus = 1
    """CPUs (and CPU threads) per worker."""
    use_gpu: bool = False
    """One GPU per worker."""
    labels: dict[str, str] = {}
    """Only on nodes with these labels, e.g. {role: train} (`ray start --labels`, ray_cluster.yaml); {} = anywhere."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: 1 shards optimizer states, 2 also gradients (sent after each pack, not each step), 3 also
    parameters."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What moves from the GPU's memory to the CPU's: optimizer states (ZeRO 1 to 3, with DeepSpeed's CPU Adam), or
    parameters as well (ZeRO 3)."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest: a third more arithmetic, a fraction of
    the memory."""
    precision: PrecisionKind = "auto"
    """Arithmetic of forward and backward; weights and optimizer states stay fp32. auto = bf16 where the workers'
    devices multiply it faster, else fp32: measured at the start, and kept after a restart."""
    export: Literal["auto", "bfloat16", "float32"] = "auto"
    """How the weights of the finished model are saved, heads always in float32; auto = as precision computes: bfloat16
    after bf16, at half the size, float32 after fp32, so that the next stage reads the very weights."""
    compile_layers: bool = False
    """torch.compile of the decoder layers, at the first pack: fewer, larger kernels on a GPU. Needs zero_stage 2 or
    less."""
    fused_adamw: bool | None = None
    """AdamW as one kernel (torch's), without temporary copies. None = on a GPU; no effect with offload."""
    fused_norms: bool | None = None
    """RMS norms as one kernel each (torch.nn.functional.rms_norm). None = on a GPU."""
    pack_tokens: TokenBudget = 1024
    """Token budget of one pack (packed sequence), which is one forward."""
    packs_per_step: Size = 8
    """Packs per optimizer step at most, over all workers; at least num_workers. A worker runs its packs one by one."""
    max_tokens: TokenBudget = 1024
    """Longest conversation; the oldest exchanges are cut first. At most pack_tokens."""
    packing: Literal["on", "off"] = "on"
    """Several conversations in one forward; off = one by one, slower, for models that would mix them (which are refused
    otherwise). Steps have the same conversations, and a pack's budget bounds them all the same."""
    epochs: Repeats = 1
    """Passes over the examples; 0 = none, for a predictor whose heads are fitted in closed form (predictor.heads)."""
    learning_rate: Positive = 5e-6
    """Peak learning rate; 5e-6 is SteerLM's for 13 B to 43 B (arXiv 2310.05344, A.3)."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: ShareBelowOne = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: Amount = 0.01
    """AdamW's weight decay."""
    clip: Positive = 1.0
    """Gradient norm above which gradients are scaled down."""
    seed: Seed = 0
    """Seed of initial heads and of the order of examples."""
    lora: LoraSettings | None = None
    """Train low-rank adapters, and heads in full; the saved model is a plain one. None = train all weights."""
    validate_every: Amount = 0
    """Share of an epoch between validations; the step with the lowest loss is saved. 0 = validate only at the end, save
    the last step."""
    patience: Count = 0
    """Stop after so many validations in a row without improvement; 0 = never."""

    memory_gib: Positive | None = None
    """Memory of a worker's device, for --plan and the check that the training fits; None = this machine's GPU, or a
    worker's share of its RAM."""
    fit: Literal["off", "auto"] = "off"
    """auto = choose zero_stage, activation_checkpointing, offload and pack_tokens (at most the one set, with as many
    tokens per step) so that a worker fits memory_gib, the fastest way first. --plan and the log say what and why."""
    checkpoint_every: Amount = 0
    """Share of an epoch between checkpoints, beside those of checkpoint_every_s; 0 = none."""
    checkpoint_every_s: Seconds = 600
    """Seconds between checkpoints; a killed training resumes from the last. 0 = only before a node goes or a stop."""
    keep_checkpoints: Times = 2
    """Number of the newest checkpoints that are kept, beside the weights of the step with the best validation loss."""
    max_failures: Repeats = 3
    """Most restarts from the last checkpoint after a worker or its node died; announced ends of nodes do not count."""

    collective_timeout_s: PositiveSeconds = 1800
    """Longest wait of a worker for the others. Then it counts as a failure (see max_failures). Half an hour, because
    the others wait while the first worker saves a model; a hang is found sooner with less."""

    @property
    def fewest(self) -> "LearnerSettings":
        """The same with as few workers as it may have: then each has the largest share of the model."""
        return self.model_copy(update={"num_workers": self.min_workers or self.num_workers})

    def model_post_init(self, _: Any) -> None:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise UserError(
                f"min_workers {self.min_workers} is above num_workers {self.num_workers}; a training has from "
                "min_workers to num_workers: raise num_workers"
            )
        if self.packs_per_step < self.num_workers:
            raise UserError(
                f"packs_per_step {self.packs_per_step} is less than num_workers {self.num_workers}: "
                "a worker would have nothing to do; raise it"
            )
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise UserError(f"offload {self.offload} needs zero_stage {least} or more, it is {self.zero_stage}")
        if self.compile_layers and self.zero_stage == 3:
            raise UserError(
                "compile_layers needs zero_stage 2 or less: ZeRO stage 3 fetches the weights between the parts that "
                "would be compiled together; set one of the two"
            )
        if self.max_tokens > self.pack_tokens:
            raise UserError(f"max_tokens {self.max_tokens} must not exceed pack_tokens {self.pack_tokens}")
        if self.fit == "auto" and self.memory_gib is None:
            raise UserError(
                "fit is auto, but memory_gib is not set, and what is chosen must not depend on the machine that starts "
                "the run; set memory_gib to the memory of a worker's device, or fit to off"
            )
        if self.patience and not self.validate_every:
            raise UserError(
                f"patience {self.patience} counts validations during training, and there are none; "
                "set validate_every above 0 (0.5 = twice an epoch)"
            )


def export_dtype(settings: LearnerSettings) -> str:
    """Of the finished model's weights, as torch and transformers name it."""
    if settings.export != "auto":
        return settings.export
    return "bfloat16" if settings.precision == "bf16" else "float32"


def rate_factor(schedule: str, progress: float, warmup: float) -> float:
    """Share of the peak learning rate at `progress`, a share of the whole training."""
    if progress < warmup:
        return progress / warmup
    left = (1 - progress) / (1 - warmup)
    return {"cosine": 0.5 - 0.5 * math.cos(math.pi * left), "linear": left, "constant_with_warmup": 1.0}[schedule]


def deepspeed_config(settings: LearnerSettings) -> dict[str, Any]:
    """The DeepSpeed configuration for `settings`, whose precision is chosen already."""
    assert settings.precision != "auto", "the trainer decides it first"
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": BUCKET_ELEMENTS}
    if settings.zero_stage == 3:
        zero["stage3_max_live_parameters"] = LIVE_ELEMENTS
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        # TrainingEngine marks a step's last backward and takes the mean: steps may have different numbers of packs.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip,
        "zero_optimization": zero,
        # Without offload AdamW is torch's: the same numbers on every device, no kernel to compile.
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": settings.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }
