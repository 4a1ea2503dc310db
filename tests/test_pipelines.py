"""Ray Data over rows: every id once, schema in the Parquet files, the same answers whatever the number of actors."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.annotator import Annotator
from actors.generator import Sampling
from actors.sampler import Sampler
from data.attributes import shipped
from data.conversation import Message, from_table, schema_of, to_table
from data.lab import Lab, LabSettings
from data.prompts import prompts_table, steering_prompts
from data.storage import Storage
from jobs.pipelines import audit, count_rows, ids_of, map_rows, write_table
from jobs.preset import WorkerPool
from jobs.stage import StageError

SCHEMA = shipped("lab")


@pytest.mark.ray
def test_annotation_scores_every_row_once_and_alike(ray_cluster: object, tiny_predictor: str, tmp_path: Path) -> None:
    rows = list(Lab(LabSettings(num_rows=157)).rows())
    source = Storage(str(tmp_path / "rows"))
    for part in range(3):
        write_table(to_table(rows[part::3], SCHEMA), source, f"part-{part}.parquet")
    arguments = {"predictor": tiny_predictor, "schema": SCHEMA, "fingerprint": "f", "row_tokens": 1024, "max_tokens": 512, "dtype": "float32", "num_threads": 1}
    target = Storage(str(tmp_path / "annotated"))
    figures = map_rows("annotate", [source], Annotator, arguments, WorkerPool(num_actors=2, batch_rows=32), target)
    audit("annotate", ids_of(source), ids_of(target))
    assert figures["rows"] == count_rows(target) == 157
    assert schema_of(pq.read_schema(target.files(".parquet")[0]), "x") == SCHEMA
    alone = {r.id: r for r in Annotator(**arguments).annotated(rows)}
    for table in target.tables():
        for row in from_table(table):
            assert row.human == alone[row.id].human
            for mine, other in zip(row.predicted, alone[row.id].predicted, strict=True):
                assert mine == pytest.approx(other, abs=1e-5)


@pytest.mark.ray
def test_samples_do_not_depend_on_the_number_of_actors(ray_cluster: object, tiny_policy: str, tmp_path: Path) -> None:
    prompts = Storage(str(tmp_path / "prompts"))
    write_table(prompts_table(steering_prompts([[Message("user", "Tell me about bees.")]], SCHEMA, SCHEMA.best(), 0, "t")), prompts)
    arguments = {"policy": tiny_policy, "schema": SCHEMA, "sampling": Sampling(12), "max_slots": 4, "dtype": "float32", "num_threads": 1}
    answers = []
    for actors in (1, 2):
        target = Storage(str(tmp_path / f"answers-{actors}"))
        map_rows("sample", [prompts], Sampler, arguments, WorkerPool(num_actors=actors, batch_rows=8), target)
        answers.append({row.id: row.messages[-1].content for table in target.tables() for row in from_table(table)})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 26


def test_the_audit_counts_lost_and_doubled_rows() -> None:
    audit("x", ["a", "b"], ["a", "b"])
    with pytest.raises(StageError, match="3 rows in, 3 out: 1 lost, 0 unknown, 1 doubled"):
        audit("x", ["a", "b", "c"], ["a", "b", "b"])


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="annotate: no rows in"):
        map_rows("annotate", [Storage(str(tmp_path / "none"))], Annotator, {}, WorkerPool(), Storage(str(tmp_path)))
