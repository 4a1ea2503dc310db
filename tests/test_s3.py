"""The same on S3: a local server process, then one that answers every third request with "slow down"."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from conftest import free_port, wait_for
from support.annotated_run import ready
from support.manifests import metrics_of

from data.shards import Output, inputs_of, merge, read, write_piece
from data.stage_metrics import AnnotationMetrics
from data.storage import Storage, options
from jobs.annotate import STAGE
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import perform


def test_what_is_written_is_listed_read_and_removed_at_once(s3: str, tmp_path: Path) -> None:
    folder = Storage(f"{s3}/basics")
    assert folder.names() == []
    assert not folder.exists()
    (folder / "a" / "m.json").write_json({"é": 1})
    assert (folder / "a" / "m.json").read_json() == {"é": 1}
    assert folder.names() == ["a/m.json"]
    before = folder.checksum()
    # Another process, as a worker would be: no cache of ours may hide what it does.
    code = "import sys; from data.storage import Storage; s = Storage(sys.argv[1]); "
    code += "(s / 'b.txt').write_bytes(b'x'); (s / 'a' / 'm.json').remove()"
    subprocess.run([sys.executable, "-c", code, folder.uri], check=True, cwd=Path(__file__).parent.parent)
    assert folder.names() == ["b.txt"]
    assert folder.checksum() != before
    assert Storage(f"{folder.uri}").download(str(tmp_path / "local")) == str(tmp_path / "local")
    assert (tmp_path / "local" / "b.txt").read_bytes() == b"x"
    folder.remove_files(["b.txt", "never-there"])
    folder.remove_files([])
    assert folder.names() == []


@pytest.mark.ray
def test_a_run_on_s3_is_annotated_and_audited(
    s3: str, ray_cluster: object, tiny_predictor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready(
        f"{s3}/runs",
        tiny_predictor,
        "rows.lab.num_rows=50",
        "rows.rows_per_file=30",
        "annotate.pool.batch_rows=16",
        "annotate.pool.num_actors=1",
    )
    metrics = metrics_of(perform(run, STAGE), AnnotationMetrics)
    assert metrics.audit.rows == metrics.rows == 50
    rows = run.folder("annotated") / "rows"
    assert rows.names() == ["part-00000.parquet", "part-00001.parquet"]
    assert not Storage(f"{rows.uri}.pieces").exists()
    assert perform(run, STAGE).skipped


@pytest.fixture
def busy_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A bucket where every third request is refused, and where to ask how many were."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "tests/support/slow_s3.py", str(port), "3"],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.DEVNULL,
    )
    wait_for(port, server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    fsspec.filesystem("s3").clear_instance_cache()
    fsspec.filesystem("s3", **options("s3://")).mkdir("busy")
    yield "s3://busy", f"http://127.0.0.1:{port}/slowed"
    server.terminate()
    server.wait(10)
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.slow
def test_a_server_that_asks_to_slow_down_gets_all_of_it_later(busy_s3: tuple[str, str]) -> None:
    bucket, refusals = busy_s3
    source, output = Storage(f"{bucket}/rows"), Output(f"{bucket}/out", "s")
    write_table(pa.table({"id": [f"{i:03d}" for i in range(40)]}), source)
    (file,) = inputs_of([source])
    for shard in file.shards(10):
        write_piece(read(shard), shard, output)
    merge(file.part, [s.piece for s in file.shards(10)], output)
    assert [t.column("id").to_pylist() for t in output.parts.tables()] == [
        t.column("id").to_pylist() for t in source.tables()
    ]
    assert output.all_pieces.names() == []
    assert os.environ["AWS_ENDPOINT_URL"] in refusals
    assert int(urllib.request.urlopen(refusals).read()) > 5
