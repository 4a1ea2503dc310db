"""One driver at a time works in a run: it holds a lease, renews it, and stops if another has taken over."""

import contextlib
import getpass
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

from cluster.events import log_event
from data import lease as leases
from data.lease import BEAT_S, LEASE, Lease, LeaseLost, Owner, acquire, holder_of, started_at, this_machine
from data.printable import printable
from data.storage import Storage

ANSWER_S = 10.0


class _Lost(BaseException):
    """Raised in the main thread, wherever it is; no `except Exception` on its way swallows it."""


@contextlib.contextmanager
def held(file: Storage, command: str) -> Iterator[None]:
    """In the block, this process alone works where `file` is. Raises Held, or LeaseLost if another has taken over.

    A dead owner of this machine is replaced at once, one of another machine after a minute without a sign of life.
    """
    lease = acquire(file, this_process(command), lambda text: log_event(text, "run.lease"))
    beat = _Heartbeat(lease)
    try:
        with leases.fenced(lease.fence), beat.signals():
            try:
                beat.start()
                yield
            finally:
                beat.stop()
                if not beat.lost:
                    with contextlib.suppress(OSError):
                        lease.release()
    except BaseException:
        if beat.lost:
            raise beat.lost from None
        raise
    if beat.lost:
        raise beat.lost


def this_process(command: str) -> Owner:
    return Owner(
        token=secrets.token_hex(8),
        command=command,
        user=_user(),
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        started=started_at(os.getpid()) or "",
        job=_job(),
        acquired=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # containers often run as a number without a name


def _job() -> str:
    """The submission id of the job whose driver this process is."""
    try:
        found = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(found.get("metadata", {}).get("job_submission_id", ""))
    except (ValueError, AttributeError):
        return ""


def holder(file: Storage) -> str:
    """Who seems to work there, as a sentence; "" if nobody does, or if no answer comes within ANSWER_S."""
    found: list[str] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # not everybody who submits may read the cluster's storage
            found.append(holder_of(file))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return found[0] if found else ""


def lease_of(folder: Storage) -> Storage:
    """The lease on a run's folder."""
    return folder / LEASE


def lease_beside(target: Storage) -> Storage:
    """The lease on a folder that is replaced as a whole."""
    return Storage(f"{target.uri.rstrip('/')}.{LEASE}")


class _Heartbeat:
    """Renews a lease from a thread of its own; wakes the main thread if it is lost."""

    def __init__(self, lease: Lease):
        self.lost: LeaseLost | None = None
        self._lease, self._ended = lease, threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._in_main = threading.current_thread() is threading.main_thread()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """In the block, a signal to the main thread ends whatever it waits for."""
        if not self._in_main:
            yield
            return
        before = signal.signal(signal.SIGUSR1, _raise_lost)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, before)

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._lease.renew()
            except LeaseLost as lost:
                self.lost = lost
                if self._in_main and not self._ended.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return
            except Exception as error:  # S3 raises botocore's own, too
                # Whoever cannot reach the storage writes nothing there, and nobody takes over what they cannot reach.
                reason = printable(f"{type(error).__name__}: {error}", 200)
                log_event(f"the lease could not be renewed: {reason}", "run.lease", "warning")


def _raise_lost(number: int, frame: FrameType | None) -> None:
    raise _Lost
