"""`kill -9` of the driver in the middle of every stage, each time started again: the result is the same.

Minutes long: `make test-kill`.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest
from support import tiny_run

from data.conversation import from_table
from data.storage import Storage

ROWS = ["rows/rows", "annotated/rows", "bootstrap-1/samples/rows", "bootstrap-1/rated/rows", "report/rated"]
ROUND = [f"bootstrap-1/{kind}" for kind in ("samples", "rated", "selected", "policy", "promotion")]
STAGES = ["rows", "base", "predictor", "annotated", "policy", *ROUND, "report"]
TOO_SHORT = "bootstrap-1/selected"
"""Over before it can be killed."""
MORE_ROWS = "rows.lab.num_rows=1000"  # so that the first stage lasts long enough to be killed in
SECONDS_INTO = {"rows": 0.0, "base": 6.0, "predictor": 12.0, "policy": 10.0, "bootstrap-1/policy": 10.0}
"""Seconds from the start of a stage to the kill, long enough to be in its training; else 2 s."""


def _kill_in(stage: str, storage: Path) -> str:
    """Start the run, kill it some seconds into `stage`, return what it printed."""
    process = subprocess.Popen(
        tiny_run.command(storage, MORE_ROWS),
        cwd=tiny_run.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
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


def _texts(folder: Storage) -> dict[str, tuple[str, ...]]:
    """The texts of every row, by its id."""
    return {row.id: tuple(m.content for m in row.messages) for table in folder.tables() for row in from_table(table)}


def _lineage(folder: Storage) -> list[dict[str, object]]:
    """What is known of every sample, whichever run's policy and predictor it names."""
    table = pa.concat_tables(folder.tables())
    return list(table.drop(["policy", "predictor"]).to_pylist())


@pytest.mark.slow
def test_killed_in_every_stage_the_result_is_the_same(tmp_path: Path) -> None:
    unbroken, _ = tiny_run.run(tmp_path / "unbroken", MORE_ROWS)
    finished = 0
    for i, stage in enumerate(STAGES):
        if stage == TOO_SHORT:
            continue
        said = _kill_in(stage, tmp_path / "killed")
        folder = tmp_path / "killed" / "demo"
        assert [s for s in STAGES if (folder / s / "manifest.json").exists()] == STAGES[:i], stage
        assert said.count("finished earlier, nothing changed: skipped") == finished, stage
        finished = i
    killed, _ = tiny_run.run(tmp_path / "killed", MORE_ROWS)
    assert [name for name, s in killed["stages"].items() if not s["skipped"]] == ["report"]
    for rows in ROWS:
        one, other = (_texts(Storage(str(tmp_path / name / "demo" / rows))) for name in ("unbroken", "killed"))
        assert one == other, rows
        assert one
    one, other = (
        _lineage(Storage(str(tmp_path / name / "demo" / "bootstrap-1/selected/lineage")))
        for name in ("unbroken", "killed")
    )
    assert one == other
    for name in STAGES[:-1]:
        one, other = (
            {k: v for k, v in r["stages"][name].items() if k in ("counts", "rows")} for r in (unbroken, killed)
        )
        assert one == other, name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_keeps_what_it_has_and_continues_from_there(number: signal.Signals, tmp_path: Path) -> None:
    """`ray job stop` and the end of a pod send SIGTERM, Ctrl-C sends SIGINT to Ray's processes as well.

    No other checkpoint is written: the training lasts less than ten minutes.
    """
    longer = "policy.learner.epochs=6"
    process = subprocess.Popen(
        tiny_run.command(tmp_path / "stopped", longer),
        cwd=tiny_run.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("[policy] running"):
            break
    for line in process.stdout:
        if "step " in line and "loss" in line:
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            break
    said, told = process.communicate(timeout=180)
    assert process.returncode == 1, said
    assert "was stopped; its checkpoint is kept, and the same command goes on from there" in told
    assert not (tmp_path / "stopped" / "demo" / "policy" / "model").exists()
    result, said = tiny_run.run(tmp_path / "stopped", longer)
    assert "goes on after step" in said
    unbroken, _ = tiny_run.run(tmp_path / "unbroken", longer)
    one, other = (r["stages"]["policy"]["training"] for r in (result, unbroken))
    assert (one["examples"], one["steps"], one["epochs"]) == (other["examples"], other["steps"], 6)
    assert one["validation_loss"] == pytest.approx(other["validation_loss"], abs=1e-4)
