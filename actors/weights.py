"""A training module's weights on the first rank: gathered from wherever they are sharded, and kept on disk for later.

Knows no training loop.
"""

import os
import tempfile
from collections.abc import Mapping

import torch


def gathered(module: torch.nn.Module, zero_stage: int, rank: int, trained: bool) -> dict[str, torch.Tensor]:
    """Weights on the CPU of rank 0, nothing elsewhere: those that are trained, or those that are frozen.

    Under ZeRO-3 one parameter at a time, and every rank takes part. Below, tensors may share memory with the live ones.
    """
    # A tied weight has two names in a state dictionary: both belong to the same half.
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    if zero_stage < 3:
        state = module.state_dict() if rank == 0 else {}
        return {k: v.detach().cpu().contiguous() for k, v in state.items() if (k not in frozen) == trained}
    import deepspeed

    found = {}
    for name, parameter in module.named_parameters():
        if (name not in frozen) == trained:
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank == 0:
                    found[name] = parameter.detach().cpu().clone()
    return found


class WeightsOnDisk:
    """The weights of one step, in a temporary file of this process, so that they are never held in memory beside the live ones."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="steerlm-best-")
        self._path = os.path.join(self._folder.name, "weights.pt")

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Replace what is kept."""
        torch.save(dict(state), f"{self._path}.new")
        os.replace(f"{self._path}.new", self._path)

    def load(self) -> dict[str, torch.Tensor]:
        """What was kept, read from the file as it is used."""
        kept: dict[str, torch.Tensor] = torch.load(self._path, mmap=True, weights_only=True)
        return kept

    def remove(self) -> None:
        self._folder.cleanup()
