"""A policy task that notes what its workers do, and lets one of them be killed in the middle. Ray sends it to them.

Knows no check: it leaves small files in a folder that all workers see.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.modeling.policy import PolicyLoss, PolicyTask
from actors.training.checkpoint import complete_steps
from data.examples import Example
from data.storage import Storage
from jobs.bench.memory import memory

KILLED, BEFORE, FIRST_LIFE, SECOND_LIFE = "killed", "before", "first", "second"
NO_CHECKPOINT_S = 2.0
"""A worker that is to die waits so long before each forward, until a checkpoint is complete."""


@dataclass(frozen=True)
class WatchedPolicy(PolicyTask):
    """Trains as its base class does."""

    notes: str = ""
    """The folder for the notes."""
    kill_at: int = 0
    """Kill the first worker that comes to this forward, once a checkpoint is complete; 0 = kill nobody."""
    checkpoints: str = ""
    """Where they are."""

    def build(self) -> PolicyLoss:
        Path(self.notes).mkdir(parents=True, exist_ok=True)
        self._note(BEFORE, memory().own)
        object.__setattr__(self, "forwards", 0)
        life = SECOND_LIFE if (Path(self.notes) / KILLED).exists() else FIRST_LIFE
        object.__setattr__(self, "life", life)
        return super().build()

    def inputs(self, examples: Sequence[Example], device: Any, pack_tokens: int = 0) -> dict[str, Any]:
        forwards, life = getattr(self, "forwards", 0) + 1, getattr(self, "life", FIRST_LIFE)
        object.__setattr__(self, "forwards", forwards)
        if self.kill_at and forwards >= self.kill_at and life == FIRST_LIFE:
            self._kill()
        self._note(life, forwards)
        return super().inputs(examples, device, pack_tokens)

    def _kill(self) -> None:
        if not complete_steps(Storage(self.checkpoints)):
            time.sleep(NO_CHECKPOINT_S)
            return
        (Path(self.notes) / KILLED).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, what: str, number: int) -> None:
        (Path(self.notes) / f"{what}-{os.getpid()}").write_text(str(number))


def noted(notes: str, what: str) -> list[int]:
    """The numbers that all workers left last."""
    return [int(file.read_text()) for file in sorted(Path(notes).glob(f"{what}-*"))]


def was_killed(notes: str) -> bool:
    return (Path(notes) / KILLED).exists()
