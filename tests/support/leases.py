"""Owners and leases of tests: on this machine, on one that cannot be asked, and how long a lease was waited for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data import lease as leases
from data import lease_state
from data.lease import LEASE, Lease, Owner, acquire
from data.lease_file import lease_file
from data.storage import Storage
from jobs.runner.lease import this_process

PLACES = ("disk", "s3", "elsewhere")
"""Kinds of storage, each with a lease of its own."""


def here(**changes: object) -> Owner:
    return this_process("python -m jobs.run").model_copy(update=changes)


def elsewhere(**changes: object) -> Owner:
    """On a machine that cannot be asked."""
    return here(machine="another", host="node-7", user="ann", pid=123, **changes)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause after a change; a lease that others hold is looked at seldom."""
    monkeypatch.setattr(lease_state, "SETTLE_S", 0.0)
    monkeypatch.setattr(leases, "POLL_S", 10.0)


def place_on(request: pytest.FixtureRequest, folder: Path) -> Storage:
    """A place for a lease on the kind of storage that is the fixture's parameter."""
    if request.param == "disk":
        return Storage(str(folder / "run" / LEASE))
    if request.param == "elsewhere":
        return Storage(f"memory://leases/{folder.name}/{LEASE}")
    return Storage(f"{request.getfixturevalue('s3')}/{folder.name}/{LEASE}")


def taken(file: Storage, owner: Owner, meanwhile: Callable[[], object] = lambda: None) -> tuple[Lease, float]:
    """The lease, and how long it waited; `meanwhile` is called once while it waits."""
    waited = [0.0]

    def sleep(seconds: float) -> None:
        if not waited[0]:
            meanwhile()
        waited[0] += seconds

    return acquire(file, owner, lambda text: None, sleep), waited[0]


def owner_of(file: Storage) -> Owner | None:
    seen = lease_file(file).read()
    return seen and leases.owner_in(seen.content)
