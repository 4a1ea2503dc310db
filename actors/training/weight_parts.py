"""A weight's values on their way to the worker that saves them: in parts, so that it never needs to be whole.

At ZeRO stage 3 each worker holds a part of every weight, and sends it to that worker alone. Weights of an earlier step
are read from storage by all workers, each its part. Everything else is whole on every worker, and nothing is sent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from actors.training import export_plan
from actors.training.checkpoint import Checkpoint
from actors.training.collectives import meet
from actors.training.deepspeed_engine import TrainingEngine
from actors.training.export_plan import Weight

Part = tuple[int, torch.Tensor]
"""First element, flat values on the CPU."""


@dataclass(frozen=True)
class WeightParts:
    """The weights of the live model, or with `kept` the trained ones of an earlier step."""

    engine: TrainingEngine
    kept: Checkpoint | None

    def is_kept(self, weight: Weight) -> bool:
        return self.kept is not None and weight.trained

    def is_spread(self, weight: Weight) -> bool:
        """Has each worker a part of it only?"""
        is_parameter = isinstance(weight.tensor, torch.nn.Parameter)
        return self.is_kept(weight) or (self.engine.settings.zero_stage == 3 and is_parameter)

    def own(self, weight: Weight) -> torch.Tensor:
        """What this worker holds of a live weight, flat, where it is."""
        held: torch.Tensor = weight.tensor.ds_tensor if self.is_spread(weight) else weight.tensor
        return held.detach().flatten()

    def turns(self, weight: Weight, owner: int, dtype: torch.dtype, num: int) -> Iterator[list[Part]]:
        """The first `num` elements of a weight, for its owner; the others get nothing, in as many turns.

        Every worker takes each turn, at the same time.
        """
        world, total = self.engine.world, weight.shape.numel()
        spread = self.is_spread(weight)
        length = -(-total // world) if spread else total  # ZeRO-3 cuts parts of equal length as well
        step = max(1, export_plan.BATCH_BYTES // dtype.itemsize // (world if spread else 1))
        for start in range(0, length if spread else num, step):
            stop = min(start + step, length)
            if spread:
                own = self._read(weight, self.engine.rank * length, start, stop).to("cpu", dtype)
                found = self._sent(own, owner)
            else:
                mine = self.engine.rank == owner
                found = [self.own(weight)[start:stop].to("cpu", dtype)] if mine else []
            firsts = (rank * length + start for rank in range(len(found)))
            yield [
                (first, values_N[: num - first]) for first, values_N in zip(firsts, found, strict=True) if first < num
            ]

    def _read(self, weight: Weight, first: int, start: int, stop: int) -> torch.Tensor:
        """Elements of this worker's part, which begins at `first`; behind the weight's end comes anything."""
        if not self.is_kept(weight):
            return self.own(weight)[start:stop]
        assert self.kept is not None
        num = max(0, min(stop, weight.shape.numel() - first) - start)
        values = torch.zeros(stop - start, dtype=weight.tensor.dtype)
        if num:
            values[:num] = self.kept.values("weights", weight.name, first + start, num)
        return values

    def _sent(self, own: torch.Tensor, owner: int) -> Sequence[torch.Tensor]:
        """All workers' values, on the owner."""
        if self.engine.world == 1:
            return [own]
        meet()  # some of them may still write, for longer than a collective may wait
        # As bytes: a process group need not know every dtype.
        sent = own.contiguous().view(torch.uint8)
        found = list(sent.new_empty(self.engine.world, len(sent))) if self.engine.rank == owner else None
        dist.gather(sent, found, dst=owner)
        return [values.view(own.dtype) for values in found or ()]
