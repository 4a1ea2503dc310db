"""Validation losses of a training: which is the best, and whether to stop. Knows no weights: it gets losses."""

from dataclasses import asdict, dataclass, field
from typing import Any

from data.stage_metrics import LossPoint


@dataclass
class EarlyStopping:
    """The validation curve. Every rank holds the same one, so all of them decide the same."""

    patience: int = 0
    """Stop after so many validations in a row without improvement; 0 = never."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One entry per validation: `step` and `loss`."""
    best_step: int = 0
    best_loss: float = float("inf")
    since_best: int = 0

    def add(self, step: int, loss: float) -> bool:
        """Record a validation; is it the best so far? A loss that is NaN never is."""
        self.curve.append({"step": step, "loss": round(loss, 6)})
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.since_best = step, loss, 0
            return True
        self.since_best += 1
        return False

    def state(self) -> dict[str, Any]:
        """All fields but the patience, which is a setting."""
        return {name: value for name, value in asdict(self).items() if name != "patience"}

    @property
    def points(self) -> tuple[LossPoint, ...]:
        return tuple(LossPoint.model_validate(point) for point in self.curve)

    @property
    def should_stop(self) -> bool:
        return 0 < self.patience <= self.since_best

    def reason(self) -> str:
        """Why it should stop, for the log."""
        return f"stopped early: the last {self.patience} validations were no better than that of step {self.best_step}"
