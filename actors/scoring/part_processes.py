"""The processes of a predictor's other parts, as the process of the first part sees them: started, told, watched.

They wait for packs on a pipe, so they cost nothing between two batches, and its end ends them: none outlives this
process. If one of them dies, this process ends, too, with a sentence in the log: what started it starts it again.
"""

import contextlib
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.distributed as dist

from actors.kernels.devices import process_group_backend
from actors.kernels.exit_code import ended
from actors.modeling.model_part import ModelPart
from data.errors import UserError

GRACE_S = 10.0
"""A part that fails stops the others' forward; only NCCL may wait for it for ever."""
SETTLE_S = 1.0
"""If a part is killed, the others fail as well, and may report that first."""
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Of a sum over the parts; they begin the same forward within moments."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartStart:
    """What a process needs to hold a part of a predictor."""

    path: str
    dtype: str
    device: torch.device
    num_threads: int | None
    packing: bool
    part: ModelPart
    meeting: str
    """Folder through which the parts find each other; the last one that leaves removes it."""

    def join(self) -> None:
        """Meet the other parts: from here on outputs can be added up."""
        options = {}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # pinned memory would take some of the first GPU, for every part
            options = {"device_id": self.device}
        dist.init_process_group(
            process_group_backend(self.device.type == "cuda"),
            init_method=f"file://{self.meeting}/parts",
            rank=self.part.rank,
            world_size=self.part.num_parts,
            timeout=COLLECTIVE_TIMEOUT,
            **options,
        )

    def leave(self) -> None:
        shutil.rmtree(self.meeting, ignore_errors=True)


@dataclass(frozen=True)
class PartPack:
    """Arguments of `Predictor.start`."""

    ids: Sequence[np.ndarray]
    reads: Sequence[np.ndarray]
    starts: Sequence[np.ndarray] | None


@dataclass(frozen=True)
class PartState:
    """What a part reports: that it has its weights, or why it ends."""

    failure: str = ""
    is_user_error: bool = False


class PartProcesses:
    """All parts but the first."""

    def __init__(self, starts: Sequence[PartStart]):
        self._starts, self._closing = starts, False
        self._states: queue.SimpleQueue[tuple[PartStart, PartState]] = queue.SimpleQueue()
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for start in starts:
            self._start(start)

    def _start(self, start: PartStart) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "actors.scoring.part_worker", str(theirs.fileno())]
        # Ray adds folders to sys.path that its own environment variables do not have.
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(start, process, ours), daemon=True).start()
        with contextlib.suppress(BrokenPipeError):  # the watching thread has the reason
            ours.send(start)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def wait_until_loaded(self) -> None:
        """Raises UserError, or RuntimeError, with the reason of a part that failed to load its weights."""
        for _ in self._starts:
            start, state = self._states.get()
            if state.failure:
                raise (UserError if state.is_user_error else RuntimeError)(_failed(start, state.failure))

    def tell(self, pack: PartPack | None) -> None:
        """Let all of them run a forward of this pack; None = let them join."""
        for connection in self._connections:
            connection.send(pack)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """If what runs in this block fails because a part has, the error says so; of a part that was killed, it waits
        for the end of this process."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            with contextlib.suppress(queue.Empty):
                start, state = self._states.get(timeout=GRACE_S)
                time.sleep(SETTLE_S)
                raise RuntimeError(_failed(start, state.failure)) from error
            raise

    def close(self) -> None:
        """End them all, and wait until they have ended."""
        self._closing = True
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.kill()
            process.wait()
            connection.close()
        for start in self._starts:
            start.leave()

    def _watch(self, start: PartStart, process: "subprocess.Popen[bytes]", connection: Connection) -> None:
        failure = ""
        with contextlib.suppress(EOFError, OSError):
            while True:
                state: PartState = connection.recv()
                failure = state.failure
                self._states.put((start, state))
        code = process.wait()
        if code >= 0 and not failure:
            failure = ended(code)  # before it could report anything; its log has the reason
            self._states.put((start, PartState(failure, is_user_error=True)))
        if failure:
            time.sleep(GRACE_S)
        if not self._closing:
            self._end(_failed(start, failure or ended(code)))

    def _end(self, sentence: str) -> None:
        log.error("%s; this process ends with it, and its rows are rated again", sentence)
        for handler in (*logging.getLogger("actors").handlers, *logging.getLogger().handlers):
            handler.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        for process in self._processes:
            process.kill()
        for start in self._starts:
            start.leave()
        os._exit(1)


def meeting_folder() -> str:
    """For the parts of one predictor, readable by this user alone."""
    return tempfile.mkdtemp(prefix="steerlm-parts-")


def _failed(start: PartStart, failure: str) -> str:
    return f"part {start.part.rank + 1} of {start.part.num_parts} of the predictor on {start.device} failed: {failure}"
