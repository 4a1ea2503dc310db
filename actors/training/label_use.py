"""The losses of label probes, shared among the workers of a training. Knows no labels (`data.label_use` does)."""

from collections import defaultdict
from collections.abc import Sequence

import torch.distributed

from actors.modeling.train_task import TrainTask
from actors.training.deepspeed_engine import TrainingEngine
from data.label_use import LabelProbe, LabelUse, label_use

Part = tuple[str, float, float]
"""Attribute, loss with shuffled labels less that with its own, trained tokens."""


def measure_label_use(probes: Sequence[LabelProbe], task: TrainTask, engine: TrainingEngine) -> dict[str, LabelUse]:
    """Attribute -> what its labels are worth; every worker takes part, and all get the same.

    Every worker runs as many forwards as the others (ZeRO-3 needs that): one that is done repeats its last.
    """
    if not probes:
        return {}
    engine.validating(True)
    rank, world = engine.rank, engine.world
    mine = [example for probe in probes[rank::world] for example in (probe.own, *probe.shuffled.values())]
    forwards = max(sum(1 + len(probe.shuffled) for probe in probes[r::world]) for r in range(world))
    spare = [(mine or [probes[0].own])[-1]] * (forwards - len(mine))
    losses = iter([engine.loss(task.inputs([example], engine.device)) for example in [*mine, *spare]])
    parts: list[Part] = []
    for probe in probes[rank::world]:
        own, tokens = next(losses), float(probe.own.trained_T.sum())
        parts += [(name, next(losses) - own, tokens) for name in probe.shuffled]
    return _summary(_of_all(parts, world))


def _of_all(parts: list[Part], world: int) -> list[Part]:
    if world == 1:
        return parts
    found: list[list[Part] | None] = [None] * world
    torch.distributed.all_gather_object(found, parts)
    return [part for own in found for part in own or ()]


def _summary(parts: Sequence[Part]) -> dict[str, LabelUse]:
    by_name: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_name[part[0]].append(part)
    return {name: label_use([more for _, more, _ in own], [num for *_, num in own]) for name, own in by_name.items()}
