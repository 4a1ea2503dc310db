"""A checkpoint is complete or absent; any part of any tensor can be read, whatever number of workers wrote it."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from actors.training.checkpointer import COMPLETE, Checkpoint, Checkpointer, complete_steps, sweep
from actors.training.zero_shards import ZeroShard
from data.storage import Storage

WHOLE = torch.arange(10.0)


def _save(folder: Storage, step: int, world: int = 2, keep: int = 2, kind: str = "weights") -> None:
    """As `world` workers would, all at once: each holds an equal part of WHOLE, the first of them a second tensor."""

    def worker(rank: int) -> None:
        checkpointer = Checkpointer(folder, rank, world, keep)
        start, stop = (i * len(WHOLE) // world for i in (rank, rank + 1))
        shards = [ZeroShard("w", start, WHOLE[start:stop] + step)] + (
            [ZeroShard("b", 0, torch.ones(3))] if rank == 0 else []
        )
        checkpointer.save(step, {kind: shards}, {"step": step})
        checkpointer.wait()
        assert checkpointer.timing.written == 1, "it must not have failed"

    with ThreadPoolExecutor(world) as pool:
        list(pool.map(worker, range(world)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_part_can_be_read_whoever_wrote_it(world: int, tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    _save(folder, 7, world)
    checkpoint = Checkpoint(folder, 7)
    assert checkpoint.state == {"step": 7}
    assert sorted(checkpoint.names("weights")) == ["b", "w"]
    assert checkpoint.size("weights", "w") == 10
    for start in range(10):
        for stop in range(start + 1, 11):
            assert torch.equal(checkpoint.values("weights", "w", start, stop - start), WHOLE[start:stop] + 7)
    with pytest.raises(
        ValueError, match=r"lacks weights of w from element 10 on; delete it to go on from an earlier one"
    ):
        checkpoint.values("weights", "w", 5, 6)
    checkpoint.close()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    for step in (1, 2, 3):
        _save(folder, step, keep=2)
    assert complete_steps(folder) == [2, 3]
    assert {name.split("/")[0] for name in folder.names()} == {"000000002", "000000003"}


def test_what_a_dead_worker_left_is_no_checkpoint(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    _save(folder, 1)
    _save(folder, 2)
    os.remove(tmp_path / "000000002" / COMPLETE)
    assert complete_steps(folder) == [1]
    sweep(folder)
    assert not (tmp_path / "000000002").exists()
    _save(folder, 2)
    assert complete_steps(folder) == [1, 2]


def test_a_checkpoint_saved_again_stays_as_it_was(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    _save(folder, 1, world=1)
    written = os.path.getmtime(tmp_path / "000000001" / "weights-00000.safetensors")
    checkpointer = Checkpointer(folder, 0, 1, 1)
    checkpointer.save(1, {"weights": [ZeroShard("w", 0, WHOLE)]}, {"step": 1})
    checkpointer.wait()
    assert os.path.getmtime(tmp_path / "000000001" / "weights-00000.safetensors") == written
    assert torch.equal(Checkpoint(folder, 1).values("weights", "w", 0, 10), WHOLE + 1)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    _save(folder, 1)
    file = tmp_path / "000000001" / "weights-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    checkpoint = Checkpoint(folder, 1)
    assert torch.equal(checkpoint.values("weights", "w", 0, 5), WHOLE[:5] + 1)
    with pytest.raises(
        ValueError, match=r"weights-00001.safetensors is damaged or gone: delete the checkpoint .*000000001 to go on"
    ):
        checkpoint.values("weights", "w", 0, 6)


def test_an_upload_that_fails_is_said_and_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    checkpointer = Checkpointer(Storage(str(tmp_path / "file" / "under")), 0, 1, 1)
    checkpointer.save(1, {"weights": [ZeroShard("w", 0, WHOLE)]}, None)
    checkpointer.wait()
    assert (checkpointer.timing.written, checkpointer.timing.failed) == (0, 1)
    assert "a checkpoint was not written: cannot write" in capsys.readouterr().out


def test_what_is_saved_are_the_values_of_that_moment(tmp_path: Path) -> None:
    values = torch.zeros(4)
    checkpointer = Checkpointer(Storage(str(tmp_path)), 0, 1, 1)
    checkpointer.save(1, {"weights": [ZeroShard("w", 0, values)]}, None)
    values += 1
    checkpointer.wait()
    assert Checkpoint(Storage(str(tmp_path)), 1).values("weights", "w", 0, 4).tolist() == [0, 0, 0, 0]


DYING = """
import os, signal, sys, time
import torch
from actors.training.zero_shards import ZeroShard
from actors.training.checkpointer import Checkpointer
from data.storage import Storage

checkpointer = Checkpointer(Storage(sys.argv[1]), 0, 1, 2)
for step in (1, 2):
    values = torch.full((8_000_000,), float(step))
    kinds = ("weights", "exp_avg", "exp_avg_sq")
    checkpointer.save(step, {kind: [ZeroShard("w", 0, values)] for kind in kinds}, {"step": step})
    if step == 2:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    checkpointer.wait()
    print(checkpointer.timing.blocked_s, checkpointer.timing.upload_s, flush=True)
"""


def test_a_crash_in_mid_upload_leaves_the_checkpoint_before_it(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    """To an S3 server, 96 MB a checkpoint: the training waits for the copy, not for the upload."""
    folder = Storage(f"{s3}/checkpoints")
    done = subprocess.run(
        [sys.executable, "-c", DYING, folder.uri],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    [line] = done.stdout.splitlines()
    with capsys.disabled():
        blocked_s, upload_s = map(float, line.split())
        print(f"\ncheckpoint of 96 MB to S3: {blocked_s:.3f} s of the training, {upload_s:.3f} s beside it")
    assert complete_steps(folder) == [1]
    sweep(folder)
    checkpoint = Checkpoint(folder, 1)
    assert checkpoint.values("exp_avg", "w", 7_999_990, 10).tolist() == [1.0] * 10
    checkpoint.close()
    assert {name.split("/")[0] for name in folder.names()} == {"000000001"}
