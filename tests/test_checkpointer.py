"""A checkpoint is complete or absent; any part of any tensor can be read, whatever number of workers wrote it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from botocore.exceptions import EndpointConnectionError, HTTPClientError
from safetensors import SafetensorError
from support import checkpoint_workers
from support.checkpoints import WHOLE, raising, save

from actors.training.checkpoint import COMPLETE, Checkpoint, complete_steps, sweep
from actors.training.checkpointer import Checkpointer
from actors.training.zero_shards import ZeroShard
from data.storage import Storage, Unwritable


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_part_can_be_read_whoever_wrote_it(world: int, tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    save(folder, 7, world)
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
        save(folder, step, keep=2)
    assert complete_steps(folder) == [2, 3]
    assert {name.split("/")[0] for name in folder.names()} == {"000000002", "000000003"}


def test_what_a_dead_worker_left_is_no_checkpoint(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    save(folder, 1)
    save(folder, 2)
    os.remove(tmp_path / "000000002" / COMPLETE)
    assert complete_steps(folder) == [1]
    sweep(folder)
    assert not (tmp_path / "000000002").exists()
    save(folder, 2)
    assert complete_steps(folder) == [1, 2]


def test_a_checkpoint_saved_again_stays_as_it_was(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    save(folder, 1, world=1)
    written = os.path.getmtime(tmp_path / "000000001" / "weights-00000.safetensors")
    checkpointer = Checkpointer(folder, 0, 1, 1)
    checkpointer.save(1, {"weights": [ZeroShard("w", 0, WHOLE)]}, {"step": 1})
    checkpointer.wait()
    assert os.path.getmtime(tmp_path / "000000001" / "weights-00000.safetensors") == written
    assert torch.equal(Checkpoint(folder, 1).values("weights", "w", 0, 10), WHOLE + 1)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    save(folder, 1)
    file = tmp_path / "000000001" / "weights-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    checkpoint = Checkpoint(folder, 1)
    assert torch.equal(checkpoint.values("weights", "w", 0, 5), WHOLE[:5] + 1)
    with pytest.raises(
        ValueError, match=r"000000001/weights-00001.safetensors is damaged: .* bytes with another checksum"
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
    # A busy server may still write what it received before the crash: the next sweep takes that away.
    for _ in range(20):
        if (left := {name.split("/")[0] for name in folder.names()}) == {"000000001"}:
            break
        time.sleep(0.5)
        sweep(folder)
    assert left == {"000000001"}


@pytest.mark.slow
@pytest.mark.case("A1: two workers, a fault in one of them, on disk and on S3")
@pytest.mark.parametrize("store", ["disk", "s3"])
@pytest.mark.parametrize("fault", ["connection", "safetensors", "kill"])
def test_a_training_resumes_from_what_is_whole_whatever_comes_to_one_worker(
    fault: checkpoint_workers.Fault, store: str, s3: str, tmp_path: Path
) -> None:
    """Five tries each, 30 in all: which worker, which file and which moment differ."""
    for seed in range(5):
        folder = f"{tmp_path}/{seed}" if store == "disk" else f"{s3}/{tmp_path.name}-{fault}/{seed}"
        resumed, complete = checkpoint_workers.Try(folder, fault, seed).run()
        if fault == "kill":
            assert (resumed, complete) == (1, [1])
        else:
            assert (resumed, complete) == (3, [1, 3]), "step 2 lacks a part, step 3 is whole"


@pytest.mark.case("A1: any error of one worker")
@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://s3.invalid"),
        HTTPClientError(error="reset"),
        SafetensorError("No space left on device"),
        RuntimeError("what nobody thought of"),
        Unwritable(28, "cannot write it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_part_that_failed_makes_no_checkpoint_and_the_older_ones_stay(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Storage(str(tmp_path))
    save(folder, 1, keep=1)
    workers = [Checkpointer(folder, rank, 2, keep=1) for rank in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr("actors.training.checkpointer._written", raising(error))
        workers[1].save(2, {"weights": [ZeroShard("w", 5, WHOLE[5:])]}, None)
        workers[1].wait()
    workers[0].save(2, {"weights": [ZeroShard("w", 0, WHOLE[:5])]}, None)
    workers[0].wait()
    assert [(w.timing.written, w.timing.failed) for w in workers] == [(0, 1), (0, 1)]
    assert complete_steps(folder) == [1]
    own, first = capsys.readouterr().out.splitlines()
    assert str(error) in own
    assert f"warning: a checkpoint was not written: worker 1: {type(error).__name__}: " in first or str(error) in first
    save(folder, 3, keep=1)
    assert {name.split("/")[0] for name in folder.names()} == {"000000003"}, "what failed before goes, too"


@pytest.mark.case("A1: a file that storage has cut")
def test_a_file_that_is_shorter_on_storage_than_here_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put = Storage.put

    def cut(self: Storage, local: str) -> None:
        put(self, local)
        os.truncate(self.path, 20)

    monkeypatch.setattr(Storage, "put", cut)
    checkpointer = Checkpointer(Storage(str(tmp_path)), 0, 1, 1)
    checkpointer.save(1, {"weights": [ZeroShard("w", 0, WHOLE)]}, None)
    checkpointer.wait()
    assert complete_steps(checkpointer.folder) == []
    assert "weights-00000.safetensors has 20 bytes of " in capsys.readouterr().out


@pytest.mark.case("A7: weights that are not finite")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_checkpoint_holds_numbers_that_are_not_finite(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpointer = Checkpointer(Storage(str(tmp_path)), 0, 1, 1)
    checkpointer.save(1, {"exp_avg": [ZeroShard("model.w", 0, torch.tensor([1.0, value]))]}, None)
    checkpointer.wait()
    assert complete_steps(checkpointer.folder) == []
    assert "a checkpoint was not written: model.w holds NaN or infinities" in capsys.readouterr().out


@pytest.mark.case("A1: the best weights that a kept checkpoint names")
def test_a_step_that_is_needed_is_kept_beside_the_newest(tmp_path: Path) -> None:
    best = Checkpointer(Storage(str(tmp_path)), 0, 1, keep=1, needed=lambda: {1})
    for step in (1, 2, 3):
        best.save(step, {"weights": [ZeroShard("w", 0, WHOLE)]}, None)
        best.wait()
    assert complete_steps(best.folder) == [1, 3]


@pytest.mark.case("A1: a worker of an earlier life is still writing")
def test_the_part_of_another_life_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("actors.training.checkpointer.WAIT_FOR_OTHERS_S", 0.0)
    old, new = (Checkpointer(Storage(str(tmp_path)), rank, 2, 1, life=f"{rank}") for rank in (1, 0))
    for worker in (old, new):
        worker.save(1, {"weights": [ZeroShard("w", 0, WHOLE)]}, None)
        worker.wait()
    assert complete_steps(new.folder) == []
    assert "worker 1 has not written its part" in capsys.readouterr().out
