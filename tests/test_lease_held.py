"""A lease that a driver holds while it works: renewed beside the work, released after it; its loss ends the work."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.leases import PLACES, elsewhere, hurry, owner_of, place_on

from data import lease as leases
from data.lease import LEASE, Lease, LeaseLost
from data.lease_file import lease_file
from data.storage import Storage
from jobs.runner import lease as runner
from jobs.runner.lease import held, lease_beside


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture(params=PLACES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A place for a lease on each kind of storage."""
    return place_on(request, tmp_path)


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runner, "BEAT_S", 0.02)
    yield
    assert [t.name for t in threading.enumerate() if t.name == "lease"] == []
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert leases.current_fence() is None


@pytest.mark.usefixtures("beats")
def test_it_is_renewed_in_the_block_and_released_after_it(file: Storage) -> None:
    with held(file, "a"):
        first = lease_file(file).read()
        deadline = time.monotonic() + 20
        while lease_file(file).read() == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        fence = leases.current_fence()
        assert fence
        fence.require()
    assert lease_file(file).read() is None


@pytest.mark.usefixtures("beats")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_released_whatever_ends_the_block(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), held(Storage(str(tmp_path / LEASE)), "a"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("beats")
def test_a_lost_lease_ends_whatever_the_main_thread_waits_for(file: Storage) -> None:
    def work() -> None:
        with held(file, "a"):
            file.write_bytes(elsewhere().to_bytes())
            time.sleep(60)

    started = time.monotonic()
    with pytest.raises(LeaseLost, match=r"has been taken over by python -m jobs.run of ann on node-7"):
        work()
    assert time.monotonic() - started < 30
    held_by = owner_of(file)
    assert held_by
    assert held_by.host == "node-7"


@pytest.mark.usefixtures("beats")
def test_a_lost_lease_is_told_instead_of_what_it_caused(tmp_path: Path) -> None:
    file = Storage(str(tmp_path / LEASE))

    def work() -> None:
        with held(file, "a"):
            file.write_bytes(elsewhere().to_bytes())
            try:
                time.sleep(60)
            finally:
                raise RuntimeError("a consequence")

    with pytest.raises(LeaseLost):
        work()


@pytest.mark.usefixtures("beats")
def test_a_storage_that_does_not_answer_for_a_while_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, renew, failures = Storage(str(tmp_path / LEASE)), Lease.renew, []

    def sometimes(lease: Lease) -> None:
        if len(failures) < 3:
            failures.append(1)
            raise ConnectionError("no route")
        renew(lease)

    monkeypatch.setattr(Lease, "renew", sometimes)
    with held(file, "a"):
        time.sleep(0.3)
    assert len(failures) == 3
    assert "warning: the lease could not be renewed: ConnectionError: no route" in capsys.readouterr().err


def test_a_folder_that_is_replaced_has_its_lease_beside_it() -> None:
    assert lease_beside(Storage("/a/out/")).uri == "/a/out.lease.json"
