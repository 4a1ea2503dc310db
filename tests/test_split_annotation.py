"""Annotation with a predictor in two parts, one of them killed in mid-work: every row once, the scores of a whole one.

A minute long: `make test-kill`.
"""

import os
import signal
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import ray.cloudpickle
from support.annotated_run import annotator_arguments

from actors.scoring.annotator import Annotator
from actors.scoring.split_predictor import SplitPredictor
from data.attributes import shipped
from data.conversation import from_table, to_table
from data.lab import Lab, LabSettings
from data.storage import Storage
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.runner.settings import WorkerPool

SCHEMA = shipped("lab")
NUM_ROWS = 300
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


class Killing(Annotator):
    """Kills its other part before its third batch, once for all actors."""

    def __init__(self, log: str, **arguments: object):
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.log, self.batches = Path(log), 0
        assert isinstance(self.rater.predictor, SplitPredictor)
        parts = (child for child in psutil.Process().children() if "actors.scoring.part_worker" in child.cmdline())
        [self.other] = (part.pid for part in parts)
        self.note(f"starts {self.other}")

    def note(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{line}\n")

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.batches += 1
        if self.batches == 3 and "kills" not in self.log.read_text():
            self.note(f"kills {self.other}")
            os.kill(self.other, signal.SIGKILL)
        return super().__call__(batch)


@pytest.mark.slow
@pytest.mark.ray
def test_a_part_killed_in_mid_work_costs_no_row_and_changes_no_score(
    ray_cluster: object, tiny_predictor: str, tmp_path: Path
) -> None:
    rows = list(Lab(LabSettings(num_rows=NUM_ROWS)).rows())
    source, target = Storage(str(tmp_path / "rows")), Storage(str(tmp_path / "annotated"))
    for part in range(3):
        write_table(to_table(rows[part::3], SCHEMA), source, f"part-{part}.parquet")
    arguments = annotator_arguments(tiny_predictor)
    log = tmp_path / "log"
    own = {**arguments, "tensor_parallel": 2, "log": str(log)}
    pool = WorkerPool(num_actors=1, cpus_per_actor=2, batch_rows=32)
    done = map_rows("annotate", [source], Killing, own, pool, target)
    noted = [line.split() for line in log.read_text().splitlines()]
    assert [word for word, _ in noted[:3]] == ["starts", "kills", "starts"], "the actor came back"
    assert noted[1][1] == noted[0][1] != noted[2][1]
    assert audit("annotate", [source], target).rows == done.counters["rows"] == NUM_ROWS
    alone = {row.id: row for row in Annotator(**arguments).annotated(rows)}
    found = [row for table in target.tables() for row in from_table(table)]
    assert sorted(row.id for row in found) == sorted(alone)
    for row in found:
        for mine, other in zip(row.predicted, alone[row.id].predicted, strict=True):
            assert mine == pytest.approx(other, abs=1e-5)
