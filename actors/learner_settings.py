"""How a model is trained, and the DeepSpeed configuration that stands for it. Knows no Ray and no training loop."""

from typing import Any, Literal

from pydantic import Field

from actors.lora import LoraSettings
from data.record import Record


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
    lora: LoraSettings | None = None
    """Train low-rank adapters, and heads in full, instead of all weights; the saved model is a plain one. None = train all weights."""
    validate_every: float = Field(0, ge=0)
    """Share of an epoch between validations; the step with the lowest validation loss is what is saved. 0 = only at the end, the last step is saved."""
    patience: int = Field(0, ge=0)
    """Stop after so many validations in a row without improvement; 0 = never."""

    def model_post_init(self, _: Any) -> None:
        if self.rows_per_step % self.num_workers:
            raise ValueError(f"rows_per_step {self.rows_per_step} must be a multiple of num_workers {self.num_workers}")
        if self.max_tokens > self.row_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} must not exceed row_tokens {self.row_tokens}")
        if self.patience and not self.validate_every:
            raise ValueError(
                f"patience {self.patience} counts validations during training, and there are none; set validate_every above 0 (0.5 = twice an epoch)"
            )


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
