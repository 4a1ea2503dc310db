"""A training resumes from the newest checkpoint that is whole, however the newer ones are damaged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from support.checkpoints import raising, save
from support.leases import elsewhere

from actors.training.checkpoint import COMPLETE, complete_steps, newest_whole, sweep
from actors.training.checkpointer import Checkpointer
from actors.training.zero_shards import ZeroShard
from data.lease import LEASE, Fence, LeaseLost
from data.storage import Storage


def _cut(file: Path) -> None:
    os.truncate(file, os.path.getsize(file) - 1)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit": ("weights-00001.safetensors", _flip),
    "cut": ("weights-00000.safetensors", _cut),
    "empty": ("weights-00000.safetensors", lambda file: file.write_bytes(b"")),
    "gone": ("weights-00001.safetensors", Path.unlink),
    "mark cut": (COMPLETE, _cut),
    "mark empty": (COMPLETE, lambda file: file.write_bytes(b"")),
    "mark {}": (COMPLETE, lambda file: file.write_text("{}")),
    "mark a list": (COMPLETE, lambda file: file.write_text("[1]")),
}


@pytest.mark.case("A1: a damaged checkpoint")
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_that_verifies_is_resumed(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, (file, change) = Storage(str(tmp_path)), DAMAGES[damage]
    for step in (1, 2):
        save(folder, step)
    change(tmp_path / "000000002" / file)
    found = newest_whole(folder, 0, 1)
    assert found is not None
    assert found.state == {"step": 1}
    assert complete_steps(folder) == [1]
    damaged, removed = capsys.readouterr().out.splitlines()
    assert file in damaged
    assert removed.endswith("step 2 is not whole, and is removed; the one before it is tried")
    change(tmp_path / "000000001" / file)
    assert newest_whole(folder, 0, 1) is None
    assert "there is none before it: step 0 is next" in capsys.readouterr().out


@pytest.mark.case("A1: storage that does not answer while a checkpoint is read")
def test_a_checkpoint_that_cannot_be_read_now_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Storage(str(tmp_path))
    save(folder, 1)
    monkeypatch.setattr("actors.training.checkpoint.sha256", raising(EndpointConnectionError(endpoint_url="x")))
    with pytest.raises(EndpointConnectionError):
        newest_whole(folder, 0, 1)
    assert complete_steps(folder) == [1]


@pytest.mark.case("A2: a foreign folder among the checkpoints")
def test_what_is_no_checkpoint_stays(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    for name in ("mine/notes.txt", f"mine/{COMPLETE}", "000000007/half.safetensors"):
        (folder / name).write_bytes(b"{}")
    for step in (1, 2):
        save(folder, step)
    sweep(folder, keep={2})
    assert complete_steps(folder) == [2]
    assert {name.split("/")[0] for name in folder.names()} == {"mine", "000000002"}


@pytest.mark.case("A3: a worker that outlives its driver")
def test_who_has_lost_the_run_writes_no_checkpoint_and_ends(tmp_path: Path) -> None:
    folder, lease = Storage(str(tmp_path / "checkpoints")), Storage(str(tmp_path / LEASE))
    checkpointer = Checkpointer(folder, 0, 1, keep=2, fence=Fence(lease.uri, "mine"))
    for step in (1, 2):
        checkpointer.save(step, {"weights": [ZeroShard("w", 0, torch.ones(3))]}, {"step": step})
        if step == 1:
            checkpointer.wait()
            lease.write_bytes(elsewhere().to_bytes())
    with pytest.raises(LeaseLost, match="has been taken over by"):
        checkpointer.wait()
    assert {name.split("/")[0] for name in folder.names()} == {"000000001"}
    assert checkpointer.timing.failed == 0, "it did not fail, it had to stop"
