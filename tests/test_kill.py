"""`kill -9` of the driver in the middle of every stage, one after the other, each time started again: the end is the same.

Minutes long, so it has its own target: `make test-kill`.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_run

from data.storage import Storage

ROWS = ["rows/rows", "annotated/rows", "bootstrap-1/samples/rows", "bootstrap-1/rated/rows", "report/answers"]
STAGES = ["rows", "base", "predictor", "annotated", "policy", "bootstrap-1/samples", "bootstrap-1/rated", "bootstrap-1/policy", "report"]
MORE_ROWS = "rows.lab.num_rows=1000"  # so that the first stage lasts long enough to be killed in
SECONDS_INTO = {"rows": 0.0, "base": 6.0, "predictor": 12.0, "policy": 10.0, "bootstrap-1/policy": 10.0}
"""How long after a stage has begun it is killed: into the training where there is one; else 2 s."""


def _kill_in(stage: str, storage: Path) -> str:
    """Start the run, kill it some seconds into `stage`, return what it said."""
    process = subprocess.Popen(tiny_run.command(storage, MORE_ROWS), cwd=tiny_run.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(f"[{stage}] running"):
            time.sleep(SECONDS_INTO.get(stage, 2.0))
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait(60)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, f"{stage}: it ended by itself before the kill: {said[-2000:]}"
    return said


@pytest.mark.slow
def test_killed_in_every_stage_the_result_is_the_same(tmp_path: Path) -> None:
    unbroken, _ = tiny_run.run(tmp_path / "unbroken", MORE_ROWS)
    for i, stage in enumerate(STAGES):
        said = _kill_in(stage, tmp_path / "killed")
        folder = tmp_path / "killed" / "demo"
        assert [s for s in STAGES if (folder / s / "manifest.json").exists()] == STAGES[:i], stage
        assert said.count("finished earlier, nothing changed: skipped") == max(0, i - 1 if i else 0), stage
    killed, _ = tiny_run.run(tmp_path / "killed", MORE_ROWS)
    assert [name for name, s in killed["stages"].items() if not s["skipped"]] == ["report"]
    for rows in ROWS:
        one, other = (tiny_run.ids_of(Storage(str(tmp_path / name / "demo" / rows))) for name in ("unbroken", "killed"))
        assert one == other, rows
        assert one
    for name in STAGES[:-1]:
        one, other = ({k: v for k, v in r["stages"][name].items() if k in ("counts", "rows")} for r in (unbroken, killed))
        assert one == other, name
