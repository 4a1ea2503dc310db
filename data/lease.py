"""Who works in a folder: a small file that one owner at a time creates, renews and removes. Knows no job and no Ray.

Whoever does not renew it for DEAD_AFTER_S is taken for dead, by the clock of the one who waits: no two clocks are
compared. A process of the same machine is asked instead: a dead one is replaced at once, a living one never.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from data.errors import UserError
from data.lease_file import lease_file
from data.lease_state import LeaseFile, Seen
from data.printable import printable
from data.record import Record
from data.storage import Storage, Unwritable

LEASE = "lease.json"
BEAT_S, DEAD_AFTER_S = 10.0, 60.0
"""Seconds between two renewals, and without one until somebody else may go on."""
POLL_S = 1.0
UNKNOWN = "somebody unknown"


class Held(UserError):
    """Somebody else works there; the sentence says who, since when, and what to do."""


class LeaseLost(UserError):
    """Somebody else has taken over, so this process must not write any more."""


class Owner(Record):
    """Who works there."""

    token: str
    """Different for each lease."""
    command: str
    user: str
    host: str
    machine: str
    """Where `pid` means something: a boot of a host, and a container's own processes in it."""
    pid: int
    started: str
    """When the process started, in the system's own words: process ids are used again."""
    job: str
    """The id of the submitted job, "" if started by hand."""
    acquired: str
    """UTC, `2026-11-22T12:00:00Z`."""
    renewals: int = 0

    def __str__(self) -> str:
        job = f", job {printable(self.job, 60)}" if self.job else ""
        who = f"{printable(self.user, 30)} on {printable(self.host, 60)}"
        return f"{printable(self.command, 60)} of {who} (process {self.pid}{job})"

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump()).encode()


@dataclass(frozen=True)
class Fence:
    """Travels to workers: lets them ask, before they publish something, whether their driver still holds the lease."""

    uri: str
    token: str

    def require(self) -> None:
        """Raise LeaseLost if somebody else holds it."""
        seen = lease_file(Storage(self.uri)).read()
        holder = seen and owner_in(seen.content)
        if holder and holder.token != self.token:
            raise LeaseLost(f"{_folder(self.uri)} has been taken over by {holder}, so nothing more is written there")


_fences: list[Fence] = []


@contextlib.contextmanager
def fenced(fence: Fence) -> Iterator[None]:
    """In the block, `current_fence` is this one."""
    _fences.append(fence)
    try:
        yield
    finally:
        _fences.remove(fence)


def current_fence() -> Fence | None:
    """Of the lease that this process holds; None without one."""
    return _fences[-1] if _fences else None


class Lease:
    """A lease that this process holds."""

    def __init__(self, place: LeaseFile, uri: str, owner: Owner, seen: Seen):
        self._place, self._uri, self._owner, self._seen = place, uri, owner, seen

    @property
    def fence(self) -> Fence:
        return Fence(self._uri, self._owner.token)

    def renew(self) -> None:
        """A sign of life. Raises LeaseLost if somebody else holds it now, OSError if nobody knows."""
        self._owner = self._owner.model_copy(update={"renewals": self._owner.renewals + 1})
        content = self._owner.to_bytes()
        if seen := self._place.renew(self._seen, content):
            self._seen = seen
            return
        other = self._place.read()
        holder = other and owner_in(other.content)
        if other and holder and holder.token == self._owner.token:
            self._seen = other  # an answer was lost on its way
        elif other is None and (seen := self._place.create(content)):
            self._seen = seen  # somebody deleted it
        else:
            raise LeaseLost(
                f"{_folder(self._uri)} has been taken over by {holder or UNKNOWN}: this process gave no sign of life "
                f"for {DEAD_AFTER_S:.0f} s; it stops, and the other goes on"
            )

    def release(self) -> None:
        """Let others in; nothing happens if somebody else holds it now."""
        self._place.remove(self._seen)


def acquire(
    file: Storage, owner: Owner, log: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Lease:
    """The lease in `file`, as soon as whoever holds it is known to be dead. Raises Held if they live."""
    place, content = lease_file(file), owner.to_bytes()
    while True:
        if seen := _created(place, file.uri, content):
            return Lease(place, file.uri, owner, seen)
        other = place.read()
        if other is None:
            continue  # released just now
        holder = owner_in(other.content)
        who = f"{_folder(file.uri)}: {holder or UNKNOWN}"
        if holder and holder.machine == owner.machine:
            if _lives(holder):
                raise _held(file.uri, holder)
            log(f"{who} holds it, and is dead; this process goes on")
        else:
            log(f"{who} holds it; waiting at most {DEAD_AFTER_S:.0f} s for a sign of life")
            if not _silent(place, other, sleep):
                if living := place.read():
                    raise _held(file.uri, owner_in(living.content))
                continue
            log(f"{who} gave no sign of life; this process goes on")
        if seen := place.take(other, content):
            return Lease(place, file.uri, owner, seen)


def _created(place: LeaseFile, uri: str, content: bytes) -> Seen | None:
    try:
        return place.create(content)
    except OSError as error:
        advice = "get access there, or set `storage` to another place"
        raise Unwritable(error.errno, f"cannot write {uri}: {error.strerror or error}; {advice}") from error


def holder_of(file: Storage) -> str:
    """A sentence if somebody seems to work there, else "". Waits for nobody: a lease that was not renewed for long, by
    this machine's clock, counts as none."""
    seen = lease_file(file).read()
    holder = seen and owner_in(seen.content)
    if not seen or not holder:
        return ""
    lives = _lives(holder) if holder.machine == this_machine() else time.time() - seen.renewed_at < DEAD_AFTER_S
    return str(_held(file.uri, holder)) if lives else ""


def owner_in(content: bytes) -> Owner | None:
    """None if the content is no lease of this version."""
    try:
        return Owner.model_validate_json(content)
    except ValidationError:
        return None


def _silent(place: LeaseFile, seen: Seen, sleep: Callable[[float], None]) -> bool:
    """Wait until the lease changes, or until DEAD_AFTER_S are over: was there no sign of life?"""
    waited = 0.0
    while waited < DEAD_AFTER_S:
        sleep(POLL_S)
        waited += POLL_S
        now = place.read()
        if now is None or now.mark != seen.mark:
            return False
    return True


def _held(uri: str, holder: Owner | None) -> Held:
    who = f"{holder}, since {holder.acquired}" if holder else UNKNOWN
    return Held(
        f"{_folder(uri)} is in use by {who}; wait until it ends, or stop it, or set `run` to another name "
        f"(after {DEAD_AFTER_S:.0f} s without a sign of life from it the same command goes on)"
    )


def _folder(uri: str) -> str:
    return printable(uri.removesuffix("/" + LEASE).removesuffix("." + LEASE), 120)


def _lives(holder: Owner) -> bool:
    started = started_at(holder.pid)
    return started is not None and started == holder.started


def started_at(pid: int) -> str | None:
    """When a process of this machine started, "" where the system does not tell; None if it is dead."""
    if os.path.isdir("/proc/self"):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The second field is the command in parentheses, which may hold anything.
                state, *fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in (b"Z", b"X") else fields[18].decode()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def this_machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"
