"""A worker's share of each step: which packs it runs, on its device and ahead of their turn. Knows no weights."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from actors.modeling.train_task import TrainTask
from actors.training.deepspeed_engine import Pack
from actors.training.forwards import forwards
from actors.training.prepared import prepared
from actors.training.settings import LearnerSettings
from data.examples import Examples, digest_of
from data.loader import DataLoader, PackedStep, Position
from data.packing import dealt


@dataclass(frozen=True)
class Share:
    """One worker's part of a step, on its device."""

    packs: list[Pack]
    weight: float
    """Of the targets of all workers."""
    digest: int
    """Of the ids of the examples in `packs`."""
    seconds: float
    """That the step waited for it."""


@dataclass(frozen=True)
class Shares:
    """The shares of the worker `rank` of `world`."""

    task: TrainTask
    settings: LearnerSettings
    loader: DataLoader
    device: torch.device
    rank: int
    world: int

    def steps(self, start: Position, number: int) -> Iterator[tuple[PackedStep, Share]]:
        """Each step from `start` on with its share; `number` steps are done.

        For a GPU a thread makes the next share while a step runs, and sends it there.
        """
        ahead = self.device.type == "cuda"
        numbered = enumerate(self.loader.steps(start), number)
        for (_, step), share in prepared(numbered, lambda item: self.of(*item, ahead), ahead):
            yield step, share

    def of(self, number: int, step: PackedStep, ahead: bool = False) -> Share:
        """The share of the step after `number` others; one with fewer packs than others is filled up."""
        started = time.perf_counter()
        examples, packs = step.examples, forwards(step.packs, self.task.packing)
        shares = self.dealt(examples, packs)
        mine = [packs[n] for n in shares[self.rank]]
        seeds = [hash((self.settings.seed, number, n)) % 2**63 for n in shares[self.rank]]
        own = [Pack(self.inputs(examples, pack), seed) for pack, seed in zip(mine, seeds, strict=True)]
        # Where others have more packs, the shortest example fills up, and does not count.
        shortest = min((i for pack in packs for i in pack), key=lambda i: int(examples.lengths[i]))
        missing = max(map(len, shares)) - len(own)
        own += [Pack(self.inputs(examples, [shortest]), seed=0, counts=False) for _ in range(missing)]
        digest = sum(digest_of(examples.ids[i] for i in pack) for pack in mine)
        seconds = 0.0 if ahead else time.perf_counter() - started
        return Share(own, self.weight(examples, packs), digest, seconds)

    def first(self, num_steps: int) -> Iterator[dict[str, Any]]:
        """The forward arguments of this worker's packs of the first steps."""
        for step in itertools.islice(self.loader.steps(), num_steps):
            for number in dealt(step.packs, [len(pack) for pack in step.packs], self.world)[self.rank]:
                for pack in forwards([step.packs[number]], self.task.packing):
                    yield self.inputs(step.examples, pack)

    def dealt(self, examples: Examples, packs: list[list[int]]) -> list[list[int]]:
        """The numbers of the packs that each worker runs."""
        # Attention grows with the square of each example's length, so tokens alone do not give the cost of a pack.
        costs = [sum(int(examples.lengths[i]) + int(examples.lengths[i]) ** 2 / 4096 for i in pack) for pack in packs]
        return dealt(packs, costs, self.world)

    def inputs(self, examples: Examples, pack: list[int]) -> dict[str, Any]:
        """The forward arguments of one pack."""
        return self.task.inputs([examples[i] for i in pack], self.device, self.settings.pack_tokens)

    def weight(self, examples: Examples, packs: list[list[int]]) -> float:
        """Of all targets in `packs`."""
        return sum(self.task.target_weight(examples[i]) for pack in packs for i in pack)
