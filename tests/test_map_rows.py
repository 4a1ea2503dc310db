"""Ray Data over rows: every id once and in order, the same answers for every pool, and a killed run continues."""

import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
from support.annotated_run import annotator_arguments
from support.tiny_run import ids_of

from actors.generation.protocol import Sampling
from actors.generation.sampler import Sampler
from actors.generation.settings import EngineSettings
from actors.scoring.annotator import Annotator
from cluster.preflight import WouldHang
from data.attributes import shipped
from data.conversation import Message, from_table, schema_of, to_table
from data.lab import Lab, LabSettings
from data.prompts import prompts_table, steering_prompts
from data.storage import Storage
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows, write_table
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import StageError

SCHEMA = shipped("lab")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


class Upper:
    """Without a model: logs its batches and fails on a row, but not before rows are written in `fail_after`."""

    def __init__(self, log: str, fail_on: str = "", fail_to_start: bool = False, fail_after: str = ""):
        if fail_to_start:
            raise FileNotFoundError(2, "no weights there", log)
        self.log, self.fail_on, self.fail_after = Path(log), fail_on, fail_after

    def __call__(self, batch: pa.Table) -> pa.Table:
        ids = batch.column("id").to_pylist()
        if self.fail_on in ids:
            deadline = time.monotonic() + 60
            while self.fail_after and not _written(Storage(self.fail_after)) and time.monotonic() < deadline:
                time.sleep(0.05)
            raise OSError(5, f"{self.fail_on} cannot be done")
        with self.log.open("a") as file:
            file.write(f"{ids[0]} {len(ids)}\n")
        return batch.set_column(1, "text", pa.array([t.upper() for t in batch.column("text").to_pylist()]))


def _texts(folder: Storage, *sizes: int) -> Storage:
    for part, size in enumerate(sizes):
        names = [f"{part}-{i:03d}" for i in range(size)]
        write_table(pa.table({"id": names, "text": [f"text {n}" for n in names]}), folder, f"part-{part:05d}.parquet")
    return folder


def _written(target: Storage) -> bool:
    return bool(target.names(".parquet") or Storage(f"{target.uri}.pieces").names(".parquet"))


def _log(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines()) if path.exists() else []


@pytest.mark.ray
def test_annotation_scores_every_row_once_and_alike(ray_cluster: object, tiny_predictor: str, tmp_path: Path) -> None:
    rows = list(Lab(LabSettings(num_rows=157)).rows())
    source = Storage(str(tmp_path / "rows"))
    for part in range(3):
        write_table(to_table(rows[part::3], SCHEMA), source, f"part-{part}.parquet")
    arguments = annotator_arguments(tiny_predictor)
    target = Storage(str(tmp_path / "annotated"))
    done = map_rows(
        "annotate", [source], Annotator, arguments, WorkerPool(num_actors=2, min_actors=1, batch_rows=32), target
    )
    assert audit("annotate", [source], target).rows == done.metrics.rows == done.counters["rows"] == 157
    assert schema_of(pq.read_schema(target.files(".parquet")[0]), "x") == SCHEMA
    alone = {r.id: r for r in Annotator(**arguments).annotated(rows)}
    for table in target.tables():
        for row in from_table(table):
            assert (row.human, row.tokens, row.predictor) == (alone[row.id].human, alone[row.id].tokens, "f")
            for mine, other in zip(row.predicted, alone[row.id].predicted, strict=True):
                assert mine == pytest.approx(other, abs=1e-5)


@pytest.mark.ray
def test_samples_do_not_depend_on_the_number_of_actors(ray_cluster: object, tiny_policy: str, tmp_path: Path) -> None:
    prompts = Storage(str(tmp_path / "prompts"))
    write_table(
        prompts_table(steering_prompts([[Message("user", "Tell me about bees.")]], SCHEMA, SCHEMA.best(), 0, "t")),
        prompts,
    )
    arguments = {
        "policy": tiny_policy,
        "schema": SCHEMA,
        "sampling": Sampling(12),
        "engine": EngineSettings(max_num_seqs=4),
        "dtype": "float32",
        "num_threads": 1,
    }
    answers = []
    for actors in (1, 2):
        target = Storage(str(tmp_path / f"answers-{actors}"))
        map_rows("sample", [prompts], Sampler, arguments, WorkerPool(num_actors=actors, batch_rows=8), target)
        answers.append({row.id: row.messages[-1].content for table in target.tables() for row in from_table(table)})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 26


@pytest.mark.ray
def test_a_failed_run_goes_on_with_the_pieces_it_left(
    ray_cluster: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = _texts(Storage(str(tmp_path / "in")), 25, 7, 1), Storage(str(tmp_path / "out"))
    # The second actor works while the first waits to fail.
    pool, log, again = WorkerPool(num_actors=2, min_actors=2, batch_rows=10), tmp_path / "log", tmp_path / "again"
    failing = {"log": str(log), "fail_on": "1-003", "fail_after": target.uri}
    with pytest.raises(StageError, match=r"upper: .*1-003 cannot be done"):
        map_rows("upper", [source], Upper, failing, pool, target, "s1")
    assert "Traceback" not in "".join(capsys.readouterr())
    metrics = map_rows("upper", [source], Upper, {"log": str(again)}, pool, target, "s1").metrics
    # What a worker had done and no task had written yet is done again; what is written is not.
    assert sorted({*_log(log), *_log(again)}) == ["0-000 10", "0-010 10", "0-020 5", "1-000 7", "2-000 1"]
    assert metrics.rows == metrics.rows_before + sum(int(line.split()[1]) for line in _log(again)) == 33
    assert 0 < metrics.rows_before <= sum(int(line.split()[1]) for line in _log(log))
    assert audit("upper", [source], target, "s1").files == 3
    assert target.names(".parquet") == source.names(".parquet")
    assert all(text == text.upper() for table in target.tables() for text in table.column("text").to_pylist())
    assert not Storage(f"{target.uri}.pieces").exists()
    # Finished: nothing starts. With another fingerprint, or without one, everything is rebuilt.
    broken = {"log": str(again), "fail_to_start": True}
    assert map_rows("upper", [source], Upper, broken, pool, target, "s1").metrics.rows_before == 33
    for fingerprint in ("s2", ""):
        rebuilt = map_rows("upper", [source], Upper, {"log": str(again)}, pool, target, fingerprint)
        assert rebuilt.metrics.rows_before == 0
    assert audit("upper", [source], target).rows == 33


@pytest.mark.ray
def test_other_batches_do_not_confuse_the_pieces(ray_cluster: object, tmp_path: Path) -> None:
    source, target = _texts(Storage(str(tmp_path / "in")), 25), Storage(str(tmp_path / "out"))
    with pytest.raises(StageError, match="cannot be done"):
        map_rows(
            "upper",
            [source],
            Upper,
            {"log": str(tmp_path / "log"), "fail_on": "0-024"},
            WorkerPool(num_actors=1, batch_rows=10),
            target,
            "s",
        )
    map_rows(
        "upper", [source], Upper, {"log": str(tmp_path / "log")}, WorkerPool(num_actors=1, batch_rows=7), target, "s"
    )
    assert audit("upper", [source], target, "s").rows == 25


@pytest.mark.ray
def test_several_folders_keep_their_parts_apart(ray_cluster: object, tmp_path: Path) -> None:
    sources = [_texts(Storage(str(tmp_path / "a")), 3, 2), _texts(Storage(str(tmp_path / "b")), 4)]
    target = Storage(str(tmp_path / "out"))
    done = map_rows("upper", sources, Upper, {"log": str(tmp_path / "log")}, WorkerPool(num_actors=1), target)
    assert done.metrics.rows == 9
    assert target.names(".parquet") == ["00-part-00000.parquet", "00-part-00001.parquet", "01-part-00000.parquet"]
    with pytest.raises(
        StageError, match=r"9 rows in, 9 out: 0 lost, 0 unknown, 3 doubled; the same id is in two files of the input"
    ):
        audit("upper", sources, target)


@pytest.mark.ray
def test_a_worker_that_cannot_start_says_so_in_its_own_words(
    ray_cluster: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = _texts(Storage(str(tmp_path / "in")), 3)
    with pytest.raises(StageError, match=r"upper: .*no weights there"):
        map_rows(
            "upper",
            [source],
            Upper,
            {"log": "x", "fail_to_start": True},
            WorkerPool(num_actors=1),
            Storage(str(tmp_path / "out")),
        )
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.ray
def test_a_pool_that_would_hang_is_refused(ray_cluster: object, tmp_path: Path) -> None:
    source = _texts(Storage(str(tmp_path / "in")), 3)
    with pytest.raises(
        WouldHang, match=r"upper: 1 actors x 1 CPU \+ 1 GPU: no node has a GPU; .* or some\.pool\.gpus_per_actor=0"
    ):
        map_rows(
            "upper",
            [source],
            Upper,
            {"log": "x"},
            WorkerPool(gpus_per_actor=1),
            Storage(str(tmp_path / "out")),
            setting="some.pool",
        )


@pytest.mark.ray
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda t: t.slice(1), r"25 rows in, 24 out: 1 lost, 0 unknown, 0 doubled; see part-00000\.parquet"),
        (lambda t: pa.concat_tables([t, t.slice(3, 2)]), "25 rows in, 27 out: 0 lost, 0 unknown, 2 doubled"),
        (
            lambda t: t.set_column(0, "id", pa.array(["x", *t.column("id").to_pylist()[1:]])),
            "25 rows in, 25 out: 1 lost, 1 unknown, 0 doubled",
        ),
        (lambda t: t.sort_by([("id", "descending")]), "0 lost, 0 unknown, 0 doubled, rows in another order"),
        (
            lambda t: t.replace_schema_metadata({b"steerlm.stamp": b"other"}),
            r"part-00000\.parquet has another fingerprint \(other\)",
        ),
        (None, "25 rows in, 0 out: 25 lost"),
    ],
)
def test_the_audit_tells_what_is_wrong_and_where(
    ray_cluster: object, tmp_path: Path, damage: object, sentence: str
) -> None:
    source, target = _texts(Storage(str(tmp_path / "in")), 25), Storage(str(tmp_path / "out"))
    table = pq.read_table((source / "part-00000.parquet").path)
    write_table(table, target)
    assert audit("x", [source], target).rows == 25
    target.remove()
    if callable(damage):
        write_table(damage(table), target)
    with pytest.raises(StageError, match=sentence):
        audit("x", [source], target)


@pytest.mark.ray
def test_a_part_that_nobody_asked_for_is_found(ray_cluster: object, tmp_path: Path) -> None:
    source, target = _texts(Storage(str(tmp_path / "in")), 2), _texts(Storage(str(tmp_path / "out")), 2, 1)
    with pytest.raises(StageError, match=r"see part-00001\.parquet"):
        audit("x", [source], target)
    assert ids_of(source) == ["0-000", "0-001"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="annotate: no rows in"):
        map_rows("annotate", [Storage(str(tmp_path / "none"))], Annotator, {}, WorkerPool(), Storage(str(tmp_path)))
