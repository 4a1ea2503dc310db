"""Ray's memory guard, the real one, kills a training: the command has the last word, and goes on when there is room.

The test holds ballast until the guard of the command's own Ray finds its node full. The guard's limit is set for that
Ray alone, a little above what the machine uses now: nothing else on the machine is killed, and it never gets full.
"""

import mmap
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import tiny_run

from actors.training.checkpoint import complete_steps
from data.storage import Storage

GIB = 2**30
OWN_BYTES = int(3.5 * GIB)
"""What a command with one worker and its Ray take, and a reserve."""
SPARE_BYTES = int(1.5 * GIB)
"""Left to the machine, whatever happens."""
BLOCK_BYTES = 128 * 2**20
TRIES = 4
"""Others use the machine too: they may fill it to the limit before the first checkpoint."""
SIZE = ["base.pretrain.num_workers=1", "base.pretrain.epochs=12", "base.pretrain.checkpoint_every_s=0.5"]
SMALL = ["ray.num_cpus=2", "ray.object_store_mb=80", "base.pretrain.max_failures=1"]


def _command(job: str, storage: Path) -> list[str]:
    words = ["jobs/presets/demo.yaml", f"storage={storage}", *tiny_run.TINY, *SIZE, *SMALL]
    return [sys.executable, "-m", f"jobs.{job}", *words]


def _run(job: str, storage: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(_command(job, storage), cwd=tiny_run.REPOSITORY, capture_output=True, text=True)


def _used() -> int:
    memory = psutil.virtual_memory()
    return memory.total - memory.available


@contextmanager
def _ballast(process: "subprocess.Popen[str]", limit_bytes: int) -> Iterator[None]:
    """Hold the machine's memory above the limit until the command has ended."""
    blocks: list[mmap.mmap] = []
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if psutil.virtual_memory().available < SPARE_BYTES:
                blocks.pop().close() if blocks else None
            elif _used() < limit_bytes + BLOCK_BYTES:
                blocks.append(mmap.mmap(-1, BLOCK_BYTES))
                blocks[-1].write(os.urandom(4096) * (BLOCK_BYTES // 4096))
            time.sleep(0.02)
        yield
    finally:
        for block in blocks:
            block.close()


def _guarded(storage: Path) -> tuple[int, str, str] | None:
    """Train beside ballast: exit code, stdout, stderr. None if it was killed before it had a checkpoint."""
    memory = psutil.virtual_memory()
    if memory.available < OWN_BYTES + SPARE_BYTES:
        pytest.skip(f"{memory.available / GIB:.1f} GiB are free, and {(OWN_BYTES + SPARE_BYTES) / GIB:.0f} are needed")
    limit = _used() + OWN_BYTES
    guard = {"RAY_memory_usage_threshold": f"{limit / memory.total:.6f}", "RAY_memory_monitor_refresh_ms": "100"}
    words, pipe = _command("pretrain", storage), subprocess.PIPE
    process = subprocess.Popen(
        words, cwd=tiny_run.REPOSITORY, env=os.environ | guard, stdout=pipe, stderr=pipe, text=True
    )
    checkpoints = Storage(str(storage)) / "demo" / "base" / "checkpoints"
    while not complete_steps(checkpoints):
        if process.poll() is not None:
            told = process.communicate()[1]
            assert re.search("Ray's memory guard killed|Ray did not start", told), told
            return None
        time.sleep(0.05)
    with _ballast(process, limit):
        printed, told = process.communicate(timeout=240)
    return process.returncode, printed, told


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: the memory guard killed the workers")
def test_what_the_guard_killed_ends_with_our_sentence_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    prepared = _run("prepare", tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    ended = next((found for _ in range(TRIES) if (found := _guarded(tmp_path))), None)
    if ended is None:
        pytest.skip("the machine's memory filled up by itself before the first checkpoint")
    code, printed, told = ended
    print(f"{printed[-2000:]}\n---\n{told[-6000:]}")
    assert code == 1
    last = told.strip().splitlines()[-1]
    assert "Ray's memory guard killed" in last
    assert "lower pack_tokens or num_workers of the learner" in last
    assert "the same command goes on from its checkpoint at step " in last
    assert "Traceback" not in told
    again = _run("pretrain", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "goes on after step" in again.stdout
