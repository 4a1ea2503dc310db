"""Requests to stop are found whatever storage does meanwhile; checkpoints are due by the clock of the first worker."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from actors.training import preemption
from actors.training.preemption import STOP, Preemption
from data.storage import Storage


@pytest.mark.case("A1: storage that does not answer when the stop is looked for")
@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="http://s3.invalid"), OSError(5, "Input/output error"), ValueError()]
)
def test_the_watcher_outlives_any_error_of_storage(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> Iterator[bool]:
        for _ in range(3):
            failed.append(1)
            yield False
        while True:
            yield True

    def exists(self: Storage) -> bool:
        if next(answer):
            return real(self)
        raise error

    real, failed = Storage.exists, list[int]()
    answer = answers()
    monkeypatch.setattr(preemption, "MARK_EVERY_S", 0.005)
    monkeypatch.setattr(Storage, "exists", exists)
    (tmp_path / STOP).write_text("")
    watched = Preemption(Storage(str(tmp_path)), 0)
    for _ in range(400):
        if (requests := watched.requested()).ends:
            break
        time.sleep(0.01)
    assert len(failed) == 3
    assert (requests.saves, requests.ends, requests.due) == (True, True, False)


@pytest.mark.case("A7: a checkpoint by the clock")
def test_a_checkpoint_is_due_so_many_seconds_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(preemption, "PREEMPTION_EVERY_S", 1e9)
    first, other, never = (Preemption(Storage(str(tmp_path)), *given) for given in ((0, 600), (1, 600), (0, 0)))
    due = []
    for now in (100, 699, 700, 701, 1299, 1302):
        clock[0] = now
        requests = first.requested(0.25, 2.0)
        assert requests.sums == (0.25, 2.0)
        due.append(requests.due)
        if requests.due:
            first.saved()
        assert not never.requested().due
        assert not other.requested().due, "the first worker says it to the others"
    assert due == [False, False, True, False, False, True]
