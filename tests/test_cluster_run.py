"""The whole pipeline, submitted to a cluster of three nodes that loses two of them, ends as on one machine.

Minutes long: `make cluster-test`.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import tiny_run
from support.job_cluster import JobCluster

from data.conversation import from_table
from data.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PLACED = [
    *("annotate.pool.labels={role: annotate}", "sampling.pool.labels={role: annotate}"),
    *(
        f"{training}.labels={{role: train}}"
        for training in ("base.pretrain", "predictor.learner", "policy.learner", "bootstrap.learner")
    ),
]
SIZE = ["rows.lab.num_rows=2000", "annotate.pool.batch_rows=32", "policy.learner.epochs=4"]


def scores(folder: Storage) -> dict[str, list[float]]:
    """Every predicted value of every row, by the row's id."""
    rows = [row for table in folder.tables() for row in from_table(table)]
    assert len({row.id for row in rows}) == len(rows), "a row is there twice"
    return {row.id: [value for values in row.predicted for value in values.values()] for row in rows}


def submitted_and_broken(cluster: JobCluster, storage: Path) -> str:
    """Submit the run and kill each worker node (`annotate`, `train`) in the middle of its stage; the output."""
    words = ["run", "jobs/presets/demo.yaml", f"storage={storage}", *tiny_run.TINY, *SIZE, *PLACED]
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.submit", *words, "--address", cluster.dashboard],
        cwd=tiny_run.REPOSITORY,
        env=cluster.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, stage, lost = "", "", set()
    assert process.stdout
    for line in process.stdout:
        said += line
        if line.startswith("[") and "running" in line:
            stage = line[1 : line.index("]")]
        if stage == "annotated" and stage not in lost and "annotate" in line and "pieces" in line and " 0/" not in line:
            lost.add(stage)
            cluster.replace("annotate")
        if stage == "policy" and stage not in lost and "step " in line and "loss" in line:
            lost.add(stage)
            cluster.replace("train")
    assert process.wait(60) == 0, said[-4000:]
    assert lost == {"annotated", "policy"}, "both nodes were lost in the middle of it"
    return said


def test_two_nodes_lost_the_run_ends_as_on_one_machine(tmp_path: Path) -> None:
    alone, _ = tiny_run.run(tmp_path / "alone", *SIZE)
    with JobCluster(tmp_path) as cluster:
        started = time.monotonic()
        submitted_and_broken(cluster, tmp_path / "cluster")
        seconds = time.monotonic() - started
    one, other = (
        scores(Storage(str(tmp_path / name / "demo" / "annotated" / "rows"))) for name in ("alone", "cluster")
    )
    assert one.keys() == other.keys()
    difference = max(abs(a - b) for row, values in one.items() for a, b in zip(values, other[row], strict=True))
    losses = {}
    for stage in ("base", "predictor", "policy", "bootstrap-1/policy"):
        here, there = (
            (Storage(str(tmp_path / name / "demo" / stage)) / "training.json").read_json()
            for name in ("alone", "cluster")
        )
        assert here["examples"] == there["examples"], stage
        losses[stage] = abs(here["losses"][-1]["loss"] - there["losses"][-1]["loss"])
    print(
        f"\n{len(one)} rows annotated, each once, scores within {difference:.1e}, "
        f"last losses {max(losses.values()):.1e}; {seconds:.0f} s, two nodes lost"
    )
    assert alone["stages"]["annotated"]["rows"] == len(one)
    assert difference < 1e-6
    assert max(losses.values()) < 1e-3
