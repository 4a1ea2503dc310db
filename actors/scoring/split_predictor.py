"""A predictor whose layers are split over several devices of a node, in a process for each part.

This process has the first part and gives the scores; the others run the same forwards (`actors.scoring.part_worker`).
Knows no rows and no text.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist

from actors.kernels.devices import CPU, assigned_devices
from actors.modeling.isolation import ANNOTATION
from actors.modeling.model_folder import local_folder
from actors.modeling.model_part import SETTING, ModelPart
from actors.scoring.part_processes import PartPack, PartProcesses, PartStart, meeting_folder
from actors.scoring.predictor import Predictor
from data.errors import UserError


class SplitPredictor(Predictor):
    """The first part, with the others at its hands."""

    others: PartProcesses

    @classmethod
    def load_parts(
        cls,
        path: str,
        num_parts: int,
        dtype: str = "float32",
        num_threads: int | None = None,
        packing: bool = True,
        setting: str = ANNOTATION,
    ) -> "SplitPredictor":
        """As `Predictor.load`, in `num_parts` parts on the devices of this process, `num_threads` CPU threads each.

        Raises UserError also for a model that cannot be split, and for a number of GPUs that is not that of the parts.
        """
        folder, meeting = local_folder(path), meeting_folder()
        starts = [
            PartStart(folder, dtype, device, num_threads, packing, ModelPart(rank, num_parts), meeting)
            for rank, device in enumerate(_devices(num_parts))
        ]
        others = PartProcesses(starts[1:])
        try:
            own = starts[0]
            predictor = cls.unchecked(folder, dtype, own.device, num_threads, packing, own.part)
            predictor.others = others
            others.wait_until_loaded()
            with others.explaining():
                others.join()
                own.join()
            predictor.require_isolated(setting)
        except BaseException:
            _leave(others)
            raise
        return predictor

    def close(self) -> None:
        """End the other parts; nothing is scored from here on. The end of this process does the same."""
        _leave(self.others)

    @torch.inference_mode()
    def start(
        self, ids: Sequence[np.ndarray], reads: Sequence[np.ndarray], starts: Sequence[np.ndarray] | None = None
    ) -> Callable[[], list[np.ndarray]]:
        self.require_segment_fits(max(len(i) for i in ids))
        self.others.require_in_step()
        with self.others.explaining():
            number = self.others.tell(PartPack(ids, reads, starts))
            begun = super().start(ids, reads, starts)

        def scores() -> list[np.ndarray]:
            # On a GPU a part that failed to begin would be waited for for ever.
            self.others.wait_until_begun(number)
            with self.others.explaining():
                return begun()

        return scores

    def _forward(self, ids: Sequence[np.ndarray]) -> None:
        self.start(ids, [np.zeros(0, np.int64) for _ in ids])()


def _leave(others: PartProcesses) -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    others.close()


def _devices(num_parts: int) -> tuple[torch.device, ...]:
    """Of the parts: the GPUs of this process, or the CPU for all."""
    assigned = assigned_devices()
    if assigned == (CPU,):
        return assigned * num_parts
    if len(assigned) != num_parts:
        raise UserError(
            f"{SETTING} is {num_parts}, and Ray assigned {len(assigned)} GPU(s) to this process: a part of the model "
            f"needs a GPU of its own, so set annotate.pool.gpus_per_actor to {num_parts}"
        )
    return assigned
