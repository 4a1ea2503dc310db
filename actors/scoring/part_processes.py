"""The processes of a predictor's other parts, as the process of the first part sees them: started, told, watched.

They wait for packs on a pipe, so they cost nothing between two batches, and its end ends them: none outlives this
process. What the model raises in one of them is raised here, as the failure of its pack. If one of them is killed, or
this process would wait for it for ever, this process ends, too, with a sentence in the log: what started it starts it
again.
"""

import contextlib
import logging
import os
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
from actors.scoring.part_deaths import PartDeaths
from data.errors import UserError

GRACE_S = 10.0
"""A part that fails stops the others' forward; only NCCL may wait for it for ever, in a forward that was begun."""
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
    """What a part reports: that it has its weights, that it has begun a pack, or why it ends."""

    failure: str = ""
    is_user_error: bool = False


class PartProcesses:
    """All parts but the first."""

    def __init__(self, starts: Sequence[PartStart]):
        """Raises UserError if their like have died too often."""
        self._deaths = PartDeaths.of(starts[0].path)
        self._deaths.require_few()
        self._starts, self._closing, self._working = starts, False, False
        self._told, self._broken = 0, ""
        self._reported, self._raised = threading.Condition(), threading.Event()
        self._reports = [0] * len(starts)
        self._failures: list[tuple[PartStart, PartState]] = []
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
        number = len(self._processes)
        self._connections.append(ours)
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(number, process, ours), daemon=True).start()
        with contextlib.suppress(BrokenPipeError):  # the watching thread has the reason
            ours.send(start)

    def wait_until_loaded(self) -> None:
        """Raises UserError, or RuntimeError, with the reason of a part that failed to load its weights."""
        self.wait_until_begun(0)

    def wait_until_begun(self, number: int) -> None:
        """Until all of them have begun this pack: the forward of one that could not would never end under NCCL. Raises
        as `wait_until_loaded`."""
        with self._reported:
            self._reported.wait_for(lambda: self._failures or min(self._reports) > number)
        self._raise_failure()

    def join(self) -> None:
        """Let all of them meet."""
        self._send(None)

    def require_in_step(self) -> None:
        """Raises as `wait_until_loaded` after a failure of any part, and RuntimeError after one of this process."""
        self._raise_failure()
        if self._broken:
            raise RuntimeError(f"a forward failed before ({self._broken}), so the predictor's parts are not in step")

    def tell(self, pack: PartPack) -> int:
        """Let all of them run a forward of this pack; gives its number."""
        self._told += 1
        self._send(pack)
        return self._told

    def _send(self, pack: PartPack | None) -> None:
        for connection in self._connections:
            connection.send(pack)

    def _raise_failure(self, cause: Exception | None = None) -> None:
        if not self._failures:
            return
        time.sleep(SETTLE_S)
        start, state = self._failures[0]
        self._raised.set()
        raise (UserError if state.is_user_error else RuntimeError)(_failed(start, state.failure)) from cause

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """If what runs in this block fails because a part has, the error says so; of a part that was killed, it waits
        for the end of this process."""
        self._working = True
        try:
            yield
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"
            if isinstance(error, RuntimeError | OSError):
                with self._reported:
                    self._reported.wait_for(lambda: self._failures, timeout=GRACE_S)
                self._raise_failure(error)
            raise
        finally:
            self._working = False

    def close(self) -> None:
        """End them all, and wait until they have ended."""
        self._closing = True
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.kill()
            process.wait()
            connection.close()
        for start in self._starts:
            start.leave()

    def _watch(self, number: int, process: "subprocess.Popen[bytes]", connection: Connection) -> None:
        failed, start = False, self._starts[number]
        with contextlib.suppress(EOFError, OSError):
            while True:
                state: PartState = connection.recv()
                failed |= bool(state.failure)
                self._report(number, state)
        code = process.wait()
        if code >= 0 and not failed:  # before it could report anything; its log has the reason
            failed = True
            self._report(number, PartState(ended(code), is_user_error=True))
        if failed and self._is_raised():
            start.leave()
        elif not self._closing:
            self._end(_failed(start, self._failures[0][1].failure if failed else ended(code)))

    def _report(self, number: int, state: PartState) -> None:
        with self._reported:
            self._reports[number] += 1
            if state.failure:
                self._failures.append((self._starts[number], state))
            self._reported.notify_all()

    def _is_raised(self) -> bool:
        """Is a failure raised to the caller? He may come later; one who works, and does not notice it, is stuck."""
        while not self._raised.wait(GRACE_S):
            if self._working or self._closing:
                return False
        return True

    def _end(self, sentence: str) -> None:
        log.error("%s; this process ends with it, and its rows are rated again", sentence)
        with contextlib.suppress(OSError):  # a full disk
            self._deaths.note(sentence)
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
