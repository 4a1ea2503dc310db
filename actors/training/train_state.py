"""Where a training stands: what a checkpoint keeps beside weights and moments. Plain numbers, so that JSON can hold them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from data.loader import PackedStep, Position


@dataclass
class TrainState:
    """Counters over all lives of a training."""

    step: int = 0
    position: tuple[int, int, int] = (0, 0, 0)
    progress: float = 0.0
    """Epochs behind us."""
    examples: int = 0
    tokens: int = 0
    budget_tokens: int = 0
    """What the rows could have held."""
    target_weight: float = 0.0
    seconds: float = 0.0
    """Of training steps, without validation and checkpoints."""
    expected: int = 0
    """Digest of the ids of the examples that the windows begun so far have."""
    ran: int = 0
    """Digest of the ids of the examples that the workers ran; the same in the end."""
    losses: list[dict[str, float]] = field(default_factory=list)
    validations: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any]) -> "TrainState":
        return cls(**state)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def at(self) -> Position:
        return Position(*self.position)

    def done(self, step: PackedStep, pack_tokens: int, weight: float, seconds: float) -> None:
        """One more step is done, over all workers."""
        self.step += 1
        self.position, self.progress = (step.after.epoch, step.after.window, step.after.step), step.progress
        self.examples += sum(map(len, step.packs))
        self.tokens += step.num_tokens
        self.budget_tokens += pack_tokens * len(step.packs)
        self.target_weight += weight
        self.seconds += seconds

    def audit(self) -> str:
        """Every example must have been run as often as the epochs have it, over all workers and lives of this training; returns what to say of it."""
        assert self.ran == self.expected, (
            f"the examples that were trained on are not those of the epochs: ids {self.ran:016x} instead of {self.expected:016x}"
        )
        return f"audit: {self.examples:,} examples in {self.progress:g} epochs, each as often as it should be; ids {self.ran:016x}"
