"""What a training keeps until its end: the newest checkpoints, and the weights of the best step. Knows no loop."""

import secrets

from actors.training.checkpoint import COMPLETE, Checkpoint, complete_steps, newest_whole, sweep, whole
from actors.training.checkpointer import Checkpointer
from actors.training.collectives import from_first
from data.lease import Fence
from data.storage import Storage

CHECKPOINTS = "checkpoints"
"""The folder of the newest ones, in that of the training."""


class KeptCheckpoints:
    """Every worker makes one at the same time, and calls all but `wait` and `remove` with the others."""

    def __init__(self, output: Storage, workers: tuple[int, int], keep: int, fence: Fence | None = None):
        """`workers` are this one's rank and their number."""
        self._workers, life = workers, from_first(secrets.token_hex(8))
        self.newest = Checkpointer(output / CHECKPOINTS, *workers, keep, life=life, fence=fence)
        timing = self.newest.timing
        self.best = Checkpointer(output / "best", *workers, 1, timing, self._best_steps, life, fence)

    def resume(self) -> Checkpoint | None:
        """The newest whole checkpoint of an earlier run of this training."""
        if not self._workers[0]:
            sweep(self.newest.folder)
            sweep(self.best.folder)
        return newest_whole(self.newest.folder, *self._workers)

    def best_weights(self, step: int) -> Checkpoint | None:
        """The weights of a step that was the best; None if they are not there, or not whole."""
        there = from_first(step in complete_steps(self.best.folder))
        return whole(self.best.folder, step, *self._workers) if there else None

    def wait(self) -> None:
        self.newest.wait()
        self.best.wait()

    def remove(self) -> None:
        self.newest.folder.remove()
        self.best.folder.remove()

    def _best_steps(self) -> list[int]:
        """The steps whose weights the kept checkpoints name as the best so far."""
        folder = self.newest.folder
        states = [(folder / f"{step:09d}" / COMPLETE).read_json()["state"] for step in complete_steps(folder)]
        return [state["validations"]["best_step"] for state in states]
