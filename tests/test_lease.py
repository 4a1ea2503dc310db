"""One driver at a time: who else comes is told who works there; a dead owner is replaced, a living one never."""

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.leases import PLACES, elsewhere, here, hurry, owner_of, place_on, taken

from data import lease as leases
from data.lease import LEASE, Held, LeaseLost, holder_of
from data.lease_file import lease_file
from data.storage import Storage, Unwritable

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(params=PLACES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A place for a lease on each kind of storage."""
    return place_on(request, tmp_path)


def test_a_living_owner_of_this_machine_is_left_alone_and_named(file: Storage) -> None:
    lease, _ = taken(file, here(user="ann", job="steerlm-demo-run-1"))
    with pytest.raises(Held) as caught:
        taken(file, here())
    said = str(caught.value)
    for words in ("is in use by python -m jobs.run of ann on ", f"process {os.getpid()}, job steerlm-demo-run-1"):
        assert words in said
    assert "since 20" in said
    assert len(said) <= 400
    assert holder_of(file) == said
    lease.release()
    assert holder_of(file) == ""
    assert lease_file(file).read() is None
    taken(file, here())


def test_the_folder_that_was_made_for_the_lease_goes_with_it(tmp_path: Path) -> None:
    taken(Storage(str(tmp_path / "run" / LEASE)), here())[0].release()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    taken(Storage(str(tmp_path / "mine" / LEASE)), here())[0].release()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 7}, {"started": "1"}], ids=["dead", "its id is used again"])
def test_a_dead_owner_of_this_machine_is_replaced_at_once(file: Storage, changes: dict[str, object]) -> None:
    taken(file, here(**changes))
    assert holder_of(file) == ""
    lease, waited = taken(file, here())
    assert waited == 0
    lease.renew()


def test_a_silent_owner_elsewhere_is_replaced_after_a_minute(file: Storage) -> None:
    old, _ = taken(file, elsewhere())
    new, waited = taken(file, here())
    assert waited == leases.DEAD_AFTER_S == 60
    new.renew()
    with pytest.raises(LeaseLost, match=r"has been taken over by python -m jobs.run of .*it stops, and the other goes"):
        old.renew()
    old.release()  # does nothing to the other's
    new.renew()


def test_an_owner_elsewhere_who_shows_life_is_left_alone(file: Storage) -> None:
    owner = elsewhere()
    lease, _ = taken(file, owner)
    for _ in range(2):
        with pytest.raises(Held, match=r"of ann on node-7 \(process 123\)"):
            taken(file, here(), meanwhile=lease.renew)
    held_by = owner_of(file)
    assert held_by
    assert held_by.token == owner.token


def test_who_ends_while_somebody_waits_lets_them_in(file: Storage) -> None:
    lease, _ = taken(file, elsewhere())
    _, waited = taken(file, here(), meanwhile=lease.release)
    assert waited == leases.POLL_S


def test_an_owner_who_comes_back_to_life_during_the_take_over_keeps_it(file: Storage) -> None:
    """Whoever saw the lease before a sign of life cannot take it."""
    lease, _ = taken(file, elsewhere())
    place = lease_file(file)
    seen = place.read()
    assert seen
    time.sleep(0.01)
    lease.renew()
    assert place.take(seen, here().to_bytes()) is None
    lease.renew()


def test_who_comes_late_never_moves_a_living_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was put aside, looked at and put back: a third process found the name free, and two owners worked."""
    file = Storage(str(tmp_path / "lease.json"))
    taken(file, here(pid=2**22 + 7))
    place = lease_file(file)
    dead = place.read()
    assert dead
    lease, _ = taken(file, here())

    def no_rename(*_: object) -> None:
        raise AssertionError("moved")

    monkeypatch.setattr("data.lease_on_disk.os.rename", no_rename)
    assert place.take(dead, here().to_bytes()) is None
    lease.renew()


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_that_cannot_be_locked_is_looked_at_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    waited: list[float] = []

    def none(*_: object) -> None:
        raise OSError(errno.EBADF, "as NFS says")

    if not locks:
        monkeypatch.setattr("data.lease_on_disk.fcntl.flock", none)
    monkeypatch.setattr("data.lease_state.time.sleep", waited.append)
    file = Storage(str(tmp_path / "lease.json"))
    taken(file, here(pid=2**22 + 7))
    taken(file, here())
    assert len(waited) == (0 if locks else 2)


def test_a_folder_that_is_gone_is_not_made_again_by_a_release(tmp_path: Path) -> None:
    lease, _ = taken(Storage(str(tmp_path / "run" / "lease.json")), here())
    (tmp_path / "run" / "lease.json").unlink()
    (tmp_path / "run").rmdir()
    lease.release()
    assert not (tmp_path / "run").exists()


def test_a_deleted_lease_is_made_again(file: Storage) -> None:
    lease, _ = taken(file, here())
    file.remove()
    lease.renew()
    assert holder_of(file)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"token": 3}', b"\xff"])
def test_a_lease_of_nobody_we_know_is_waited_for_too(file: Storage, content: bytes) -> None:
    file.write_bytes(content)
    _, waited = taken(file, here())
    assert waited == leases.DEAD_AFTER_S


def test_of_many_at_once_one_gets_it(file: Storage) -> None:
    dead = here(pid=2**22 + 7)
    for owner in (None, *[dead] * (30 if file.is_local else 1)):
        if owner:
            file.remove()
            taken(file, owner)

        def attempt(_: int) -> bool:
            try:
                taken(file, here())
            except Held:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1
        held_by = owner_of(file)
        assert held_by
        assert held_by.pid == os.getpid()


def test_a_fence_stops_who_has_lost_it_and_nobody_else(file: Storage) -> None:
    old, _ = taken(file, elsewhere())
    old.fence.require()
    new, _ = taken(file, here())
    new.fence.require()
    with pytest.raises(LeaseLost, match="so nothing more is written there"):
        old.fence.require()
    file.remove()
    old.fence.require()  # nobody else works there


def test_a_filesystem_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", none)
    file = Storage(str(tmp_path / LEASE))
    taken(file, here())
    with pytest.raises(Held):
        taken(file, here())
    assert os.listdir(tmp_path) == [LEASE]


def test_a_place_that_cannot_be_written_is_one_sentence(s3: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for uri in (f"{tmp_path}/file/{LEASE}", f"s3://no-such-bucket/{LEASE}"):
        with pytest.raises(Unwritable, match=r"cannot write .* or set `storage` to another place"):
            taken(Storage(uri), here())


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = leases.started_at(process.pid)
        assert started
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert leases.started_at(process.pid) is None
