"""`fit: auto`: the fastest way to train that fits the memory named. Knows no preset.

ZeRO stage, activation checkpointing and offload change only rounding; the size of a pack changes which examples share
one, and as many tokens make a step.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from actors.modeling.model_memory import GIB
from actors.modeling.model_shape import ModelShape
from actors.training.memory import TrainingMemory, training_memory
from actors.training.settings import LearnerSettings
from data.errors import UserError

USABLE = 0.92
"""Share of the memory that a choice may take: what is left covers fragments and the plan's own error."""
STAGE_TIME = {0: 1.0, 1: 1.0, 2: 1.02, 3: 1.2}
"""Time of a step relative to unsharded training: estimates for a fast network, of which only the order counts."""
OFFLOAD_TIME = {"none": 1.0, "optimizer": 1.5, "parameters": 3.0}
CHECKPOINTING_TIME = 4 / 3
"""One more forward pass beside forward and backward, which count as three."""
HALF_PACK_TIME = 1.06
"""Of a pack half as large: matrix products of fewer rows."""


@dataclass(frozen=True)
class Fitted:
    """What was chosen."""

    learner: LearnerSettings
    memory: TrainingMemory
    reason: str
    """One line for the log and the plan."""


def fitted(path: str, learner: LearnerSettings, shape: ModelShape, has_logits: bool, whole_weights: bool) -> Fitted:
    """The settings of the training at `path`, chosen for its memory_gib; `whole_weights`: stage 3 is impossible.

    Raises UserError, with the smallest way and what helps, if none fits.
    """
    assert learner.memory_gib is not None, "LearnerSettings requires it with fit: auto"
    limit = USABLE * learner.memory_gib * GIB
    ways = sorted(_ways(learner, whole_weights), key=lambda way: _time(way, learner))
    # Nodes may be missing: the fewest workers hold the largest shares.
    memories = [training_memory(shape, way.fewest, has_logits) for way in ways]
    for way, memory in zip(ways, memories, strict=True):
        if memory.total <= limit:
            return Fitted(way, memory, _reason(path, learner, way, memory, shape, has_logits))
    memory, way = min(zip(memories, ways, strict=True), key=lambda found: found[0].total)
    parts = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in memory.parts.items())
    helps = ["more num_workers with zero_stage 3"] if not whole_weights else []
    helps = [*(["lora: {}"] if learner.lora is None else []), *helps, "a lower max_tokens, which packs must hold"]
    raise UserError(
        f"{path}: fit is auto, but no way to train fits {learner.memory_gib:g} GiB ({1 - USABLE:.0%} stay free). The "
        f"smallest ({_said(way)}) needs {memory.total / GIB:,.1f} on each worker ({parts}); what helps, in {path}: "
        f"{'; '.join(helps)}"
    )


def _ways(learner: LearnerSettings, whole_weights: bool) -> Iterator[LearnerSettings]:
    """Every combination that the trainer runs, those nearest to what is set first."""
    stages = [s for s in (0, 1, 2, 3) if s < 3 or not whole_weights]
    offloads = ("none", "optimizer", "parameters") if learner.use_gpu else ("none",)
    packs = list(_packs(learner))
    near = sorted(stages, key=lambda stage: (stage != learner.zero_stage, stage))
    for stage, checkpointing, offload, (tokens, per_step) in itertools.product(near, (False, True), offloads, packs):
        if stage < {"none": 0, "optimizer": 1, "parameters": 3}[offload]:
            continue
        if stage == 3 and learner.num_workers == 1 and offload != "parameters":
            continue  # nothing to share
        yield learner.model_copy(
            update={
                "zero_stage": stage,
                "activation_checkpointing": checkpointing,
                "offload": offload,
                "pack_tokens": tokens,
                "packs_per_step": per_step,
            }
        )


def _packs(learner: LearnerSettings) -> Iterator[tuple[int, int]]:
    """Tokens of a pack, halved as long as the longest conversation fits, and packs of as many tokens per step."""
    tokens, per_step = learner.pack_tokens, learner.packs_per_step
    while True:
        yield tokens, per_step
        if tokens % 2 or tokens // 2 < learner.max_tokens:
            return
        tokens, per_step = tokens // 2, per_step * 2


def _time(way: LearnerSettings, learner: LearnerSettings) -> float:
    halvings = math.log2(way.packs_per_step / learner.packs_per_step)
    return (
        STAGE_TIME[way.zero_stage]
        * OFFLOAD_TIME[way.offload]
        * (CHECKPOINTING_TIME if way.activation_checkpointing else 1)
        * HALF_PACK_TIME**halvings
    )


def _reason(
    path: str,
    learner: LearnerSettings,
    way: LearnerSettings,
    memory: TrainingMemory,
    shape: ModelShape,
    has_logits: bool,
) -> str:
    """What was chosen, its bytes, and what each faster value alone would need."""
    faster = {
        "zero_stage": min(2, way.zero_stage),
        "activation_checkpointing": False,
        "offload": "none",
        "pack_tokens": learner.pack_tokens,
    }
    needs = []
    for name, value in faster.items():
        if getattr(way, name) != value:
            other = training_memory(shape, way.model_copy(update={name: value}).fewest, has_logits).total / GIB
            needs.append(f"with {name} {str(value).lower()} it would need {other:,.1f}")
    why = f"; {', '.join(needs)}" if needs else "; nothing faster is left out"
    return f"{path}: fit auto for {learner.memory_gib:g} GiB: {_said(way)}: {memory.total / GIB:,.1f} GiB{why}"


def _said(way: LearnerSettings) -> str:
    return (
        f"zero_stage {way.zero_stage}, activation_checkpointing {str(way.activation_checkpointing).lower()}, "
        f"offload {way.offload}, pack_tokens {way.pack_tokens} x {way.packs_per_step} packs_per_step"
    )
