"""The state of a training that a checkpoint keeps beside weights and moments. Plain numbers, as JSON needs them."""

from dataclasses import dataclass, field
from typing import Any

from actors.training.early_stopping import EarlyStopping
from data.loader import PackedStep, Position
from data.stage_metrics import CheckpointMetrics, TrainingMetrics


@dataclass
class TrainState:
    """Counters since the first step, over all restarts of a training."""

    step: int = 0
    position: tuple[int, int, int] = (0, 0, 0)
    """The data loader's: epoch, window, step."""
    progress: float = 0.0
    """Epochs that are done."""
    examples: int = 0
    tokens: int = 0
    budget_tokens: int = 0
    """Tokens that the packs could have held."""
    target_weight: float = 0.0
    seconds: float = 0.0
    """Of training steps, without validation and checkpoints."""
    expected_digest: int = 0
    """Digest of the ids of the examples in the windows begun so far."""
    trained_digest: int = 0
    """Digest of the ids of the examples that the workers trained on; the same in the end."""
    losses: list[dict[str, float]] = field(default_factory=list)
    validations: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    """"bf16" or "fp32", as set or chosen; "" = not yet."""

    @property
    def next_step(self) -> Position:
        return Position(*self.position)

    @property
    def packs_filled(self) -> float:
        """Tokens over what the packs could have held, 0 to 1."""
        return self.tokens / self.budget_tokens

    def add(self, step: PackedStep, pack_tokens: int, weight: float, seconds: float) -> None:
        """Count a step, over all workers."""
        self.step += 1
        self.position, self.progress = (step.after.epoch, step.after.window, step.after.step), step.progress
        self.examples += sum(map(len, step.packs))
        self.tokens += step.num_tokens
        self.budget_tokens += pack_tokens * len(step.packs)
        self.target_weight += weight
        self.seconds += seconds

    def metrics(
        self,
        validations: EarlyStopping,
        checkpoints: CheckpointMetrics,
        zero_stage: int,
        num_workers: int,
        held_bytes: dict[str, int] | None,
        peak_memory_bytes: int,
        cpu_seconds: float,
    ) -> TrainingMetrics:
        """What the training came to, without its loss curve."""
        return TrainingMetrics(
            zero_stage=zero_stage,
            precision=self.precision,
            num_workers=num_workers,
            steps=self.step,
            epochs=round(self.progress, 4),
            examples=self.examples,
            tokens=self.tokens,
            packs_filled=round(self.packs_filled, 4),
            target_weight=round(self.target_weight, 3),
            held_bytes=held_bytes,
            tokens_per_s=round(self.tokens / self.seconds, 1),
            train_seconds=round(self.seconds, 1),
            peak_memory_bytes=peak_memory_bytes,
            checkpoints=checkpoints,
            saved_step=validations.best_step or self.step,
            validation_loss=validations.best_loss if validations.best_step else None,
            validations=validations.points,
            cpu_seconds=round(cpu_seconds, 2),
        )

    def audit(self) -> str:
        """Check that every example was trained on as often as the epochs have it; returns a line for the log."""
        assert self.trained_digest == self.expected_digest, (
            "the examples that were trained on are not those of the epochs: "
            f"ids {self.trained_digest:016x} instead of {self.expected_digest:016x}"
        )
        ids = f"ids {self.trained_digest:016x}"
        return f"audit: {self.examples:,} examples in {self.progress:g} epochs, each as often as it should be; {ids}"
