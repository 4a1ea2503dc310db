"""Numbers that are not finite end a training with one sentence. Knows no loop: it gets numbers."""

import math
from collections.abc import Iterable, Mapping

import torch

from actors.training.collectives import AgreedError, summed
from actors.training.settings import LearnerSettings

NORM_EVERY = 10
"""Steps between two looks at the gradient's norm where each look would wait for the device."""


class Diverged(AgreedError):
    """A loss, a gradient or a weight is NaN or infinite; trained again, it would be so again."""


def is_norm(value: float) -> bool:
    """Is it a gradient's norm? DeepSpeed says -1 for one that is not finite."""
    return math.isfinite(value) and value >= 0


def diverged(number: str, step: int, rate: float, settings: LearnerSettings, parts: Iterable[str] = ()) -> Diverged:
    """`number`: what is not finite, "the loss is nan"; `parts`: of the loss, where the others are finite."""
    where = f"at step {step}, at a learning rate of {rate:.2e}"
    only = f" (in {', '.join(parts)} alone)" if parts else ""
    if step == 1 and number.startswith("the loss"):
        cause = (
            "before any weight has changed, so a weight of the base model or a label is not finite, or far too large"
        )
        remedy = "check both" + (", or set precision to fp32" if settings.precision != "fp32" else "")
    else:
        cause = f"learning_rate is {settings.learning_rate:g}, warmup {settings.warmup:g}, clip {settings.clip:g}"
        remedy = "lower learning_rate, or raise warmup"
    return Diverged(f"{number}{only} {where}: {cause}; {remedy}. No model was saved; earlier checkpoints are kept")


def not_finite(parts: Mapping[str, float]) -> list[str]:
    """The names of the numbers that are not finite, if some are."""
    found = [name for name, value in parts.items() if not math.isfinite(value)]
    return found if len(found) < len(parts) else []


def require_finite(parts: Mapping[str, torch.Tensor], step: int, rate: float, settings: LearnerSettings) -> None:
    """Raise Diverged, on every worker, if one of the weights is not finite; `parts` are this worker's parts of them."""
    unfinite = summed(*(float(not bool(torch.isfinite(part).all())) for part in parts.values()))
    for name, count in zip(parts, unfinite, strict=True):
        if count:
            raise diverged(f"weight {name} is not finite", step, rate, settings)
