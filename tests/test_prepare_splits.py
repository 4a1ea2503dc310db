"""Stage `rows` in many small splits, on one to four tasks: what it writes is what one loop over the sources finds."""

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.serial_rows import rejected_of, require_equal, rows_of, serial_of
from support.source_lines import DEMO, line
from support.source_rows import REAL
from test_readers_fuzz import RECORDS

from cluster.settings.load import load
from data.conversation import to_table
from data.sources import FORMATS
from data.stage_metrics import RowsMetrics
from data.storage import options
from jobs.pipelines import read_sources
from jobs.pipelines.rows import write_rows
from jobs.pipelines.tasks import ClusterCalls, HereCalls
from jobs.prepare import STAGE
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError, perform


def _run(tmp_path: Path, sources: list[dict[str, Any]], *words: str) -> Run:
    overrides = [f"storage={tmp_path}/runs", f"rows.sources={json.dumps(sources)}", "rows.max_rejected=1", *words]
    return Run(load(Preset, DEMO, overrides))


def _mixed(number: int, draw: random.Random) -> list[bytes]:
    """Lines of questions that come again, with other ratings or none, blank ones and broken ones."""
    found = []
    for _ in range(number):
        question = f"question {draw.randrange(number // 2)}" + " and more" * draw.randrange(5)
        ratings = {"humor": draw.randrange(5), "verbosity": draw.randrange(5)} if draw.random() < 0.5 else {}
        good = line(question, **ratings).encode()
        found.append(draw.choice([good] * 12 + [b"", b"{broken", good[:-9], b"a\xff", b"[1]", b"   "]))
    return found


def _sources(folder: Path) -> list[dict[str, Any]]:
    """JSON lines with and without a byte order mark and a last newline, packed ones, small files, Parquet."""
    draw = random.Random(11)
    for name, tail in (("a.jsonl", b""), ("b.jsonl", b"\r\n")):
        (folder / "plain").mkdir(parents=True, exist_ok=True)
        (folder / "plain" / name).write_bytes(b"\xef\xbb\xbf" + b"\n".join(_mixed(150, draw)) + tail)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(b"\n".join(_mixed(90, draw))))
    small = os.fsencode(folder) + b"/caf\xe9"
    os.mkdir(small)
    for number in range(7):
        Path(os.fsdecode(small + f"/{number}.jsonl".encode())).write_bytes(b"\n".join(_mixed(5, draw)))
    records = [json.loads(raw) for raw in _mixed(200, draw) if raw.startswith(b'{"') and raw.endswith(b"}")]
    rows = [r["messages"][0]["content"] for r in records]
    pq.write_table(pa.table({"prompt": rows, "output": ["A"] * len(rows)}), folder / "x.parquet", row_group_size=20)
    return [
        {"name": "plain", "format": "messages", "uri": str(folder / "plain")},
        {"name": "packed", "format": "messages", "uri": str(folder / "packed.jsonl.gz")},
        {"name": "lab", "format": "lab"},
        {"name": "small", "format": "messages", "uri": f"{folder}/caf*/*.jsonl"},
        {"name": "parquet", "format": "prompt_output", "uri": str(folder / "x.parquet")},
    ]


def _performed(run: Run) -> RowsMetrics:
    metrics = perform(run, STAGE).manifest.read_as(RowsMetrics)
    assert metrics is not None
    return metrics


@pytest.mark.ray
@pytest.mark.parametrize(("num_tasks", "split_bytes"), [(1, 2000), (2, 2000), (4, 700), (None, 100_000)])
def test_any_number_of_tasks_and_any_splits_write_what_one_loop_finds(
    ray_cluster: object, tmp_path: Path, num_tasks: int | None, split_bytes: int
) -> None:
    sources = _sources(tmp_path / "in")
    words = ("rows.lab.num_rows=40", "rows.rows_per_file=37")
    here = _run(tmp_path, sources, "run=here", *words)
    require_equal(here, _performed(here), serial_of(here))
    tasks = "null" if num_tasks is None else num_tasks
    run = _run(tmp_path, sources, f"rows.split_bytes={split_bytes}", f"rows.num_tasks={tasks}", *words)
    require_equal(run, _performed(run), serial_of(run))
    parts = {name: (run.folder("rows") / "rows" / name).checksum() for name in (run.folder("rows") / "rows").names()}
    assert parts == {
        name: (here.folder("rows") / "rows" / name).checksum() for name in (here.folder("rows") / "rows").names()
    }


@pytest.mark.parametrize("limit", [1, 7, 40, 99, 150, 10_000])
def test_a_limit_ends_at_the_same_record(tmp_path: Path, limit: int) -> None:
    sources = [source | {"limit": limit} for source in _sources(tmp_path / "in") if source["name"] != "lab"]
    run = _run(tmp_path, sources, "rows.split_bytes=1500", "rows.num_tasks=2")
    require_equal(run, write_rows(run, run.folder("rows"), HereCalls()), serial_of(run))


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "steerlm"])
def test_every_format_is_read_the_same_in_splits(tmp_path: Path, format: str) -> None:
    records = RECORDS[format]
    lines_ = [json.dumps(record, ensure_ascii=False).encode() for record in records * 6] + [b"{broken"]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines_))
    pq.write_table(pa.Table.from_pylist(records[:1] * 5), tmp_path / "x.parquet", row_group_size=2)
    sources = [{"name": end, "format": format, "uri": f"{tmp_path}/x.{end}"} for end in ("jsonl", "parquet")]
    run = _run(tmp_path, sources, "attributes=steerlm", "bootstrap.leading=quality", "rows.split_bytes=300")
    require_equal(run, write_rows(run, run.folder("rows"), HereCalls()), serial_of(run))


def test_our_own_rows_and_scored_texts_are_read_the_same_in_splits(tmp_path: Path) -> None:
    first = _run(tmp_path, [{"name": "lab", "format": "lab"}], "run=first", "rows.lab.num_rows=60")
    write_rows(first, first.folder("rows"), HereCalls())
    rows = rows_of(first)
    pq.write_table(to_table(rows + rows[:9], first.schema), tmp_path / "own.parquet", row_group_size=8)
    (tmp_path / "t.csv").write_text("t,s\n" + "Ha ha,3\n" * 3 + 'Ho "ho,4\n' + "Hi hi,1\n")
    columns = {"text": "t", "attributes": {"humor": {"column": "s"}}}
    scored = {"name": "csv", "format": "scored_text", "uri": str(tmp_path / "t.csv"), "columns": columns}
    own = {"name": "own", "format": "steerlm", "uri": str(tmp_path / "own.parquet")}
    run = _run(tmp_path, [own, scored], "rows.split_bytes=900")
    require_equal(run, write_rows(run, run.folder("rows"), HereCalls()), serial_of(run))


@pytest.mark.parametrize("where", ["here", pytest.param("tasks", marks=pytest.mark.ray)])
@pytest.mark.parametrize("name", ["oasst1_en_labelled", "oasst_model_eval_20k", "hh_rlhf_harmless_test"])
def test_real_rows_are_read_the_same_in_splits(
    where: str, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real rows at {REAL / name}; set STEERLM_REAL_DATA to their folder")
    format = {"oasst1_en_labelled": "oasst_messages", "oasst_model_eval_20k": "prompt_output"}.get(name, "hh_rlhf")
    [packed] = (REAL / name).glob("*.jsonl.gz")
    content = gzip.decompress(packed.read_bytes())
    if format != "oasst_messages":
        content = b"\n".join(content.splitlines()[:3000])
    (tmp_path / "x.jsonl").write_bytes(content)
    # Twice: the second time every row is there before.
    sources = [
        {"name": name, "format": format, "uri": str(tmp_path / "x.jsonl")},
        {"name": "packed", "format": format, "uri": str(packed), "limit": 500},
    ]
    calls = HereCalls() if where == "here" else request.getfixturevalue("ray_cluster") and ClusterCalls(4)
    run = _run(tmp_path, sources, "attributes=oasst", "bootstrap.leading=quality", "rows.split_bytes=150000")
    require_equal(run, write_rows(run, run.folder("rows"), calls), serial_of(run))


def test_a_file_broken_in_the_middle_ends_there_as_in_one_loop(tmp_path: Path) -> None:
    """A JSON array is no JSON lines: its first line ends the file, and no later range of it counts."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.jsonl").write_text("[\n" + "".join(line(f"q{i}") + "\n{\n" for i in range(60)))
    (tmp_path / "in/y.jsonl").write_text("".join(line(f"q{i}") + "\n" for i in range(60)))
    run = _run(tmp_path, [{"name": "x", "format": "messages", "uri": f"{tmp_path}/in"}], "rows.split_bytes=500")
    with pytest.raises(StageError, match=r"x\.jsonl is broken from line 1 on: this is one JSON array"):
        write_rows(run, run.folder("rows"), HereCalls())
    assert rejected_of(run) == [vars(r) for r in serial_of(run).rejected]


def test_rejected_records_fill_files_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_sources, "REJECTED_PER_FILE", 10)
    (tmp_path / "x.jsonl").write_text("".join(line(f"q{i}") + "\n{\n" for i in range(47)))
    run = _run(
        tmp_path, [{"name": "x", "format": "messages", "uri": str(tmp_path / "x.jsonl")}], "rows.split_bytes=999"
    )
    require_equal(run, write_rows(run, run.folder("rows"), HereCalls()), serial_of(run))
    folder = run.folder("rows") / "rejected"
    assert [len(folder.fs.cat_file(path).splitlines()) for path in folder.files()] == [10, 10, 10, 10, 7]


def test_a_user_error_in_a_task_is_its_sentence(tmp_path: Path) -> None:
    for name in ("x", "y"):
        pq.write_table(pa.table({"text": ["x"] * 100}), tmp_path / f"{name}.parquet")
    run = _run(tmp_path, [{"name": "x", "format": "steerlm", "uri": str(tmp_path)}], "rows.split_bytes=100")
    with pytest.raises(StageError, match=r"carries no attribute schema .* it was not written by") as raised:
        write_rows(run, run.folder("rows"), HereCalls())
    assert "\n" not in str(raised.value)


@pytest.mark.ray
def test_a_failed_stage_goes_on_with_the_splits_it_left(
    ray_cluster: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(line(f"{name}{i}") + "\n" for i in range(50)) + "{\n")
    source = [{"name": "x", "format": "messages", "uri": str(tmp_path / "in")}]
    run = _run(tmp_path, source, "rows.split_bytes=1000", "rows.max_rejected=0")
    with pytest.raises(StageError, match="3 of 153 records were rejected"):
        perform(run, STAGE)
    pieces = run.folder("rows") / "rows.pieces"
    left = {path: os.stat(path).st_mtime_ns for path in pieces.files(".parquet")}
    assert len(left) > 6
    with pytest.raises(StageError, match="3 of 153 records were rejected"):
        perform(run, STAGE)
    assert f"rows: {len(left)} of {len(left)} splits were read before" in capsys.readouterr().out
    assert {path: os.stat(path).st_mtime_ns for path in pieces.files(".parquet")} == left
    other = _run(tmp_path, source, "rows.split_bytes=2000", "rows.max_rejected=0")
    with pytest.raises(StageError, match="3 of 153 records were rejected"):
        perform(other, STAGE)
    assert "were read before" not in capsys.readouterr().out, "other splits are other pieces"
    allowed = _run(tmp_path, source, "rows.split_bytes=1000", "rows.max_rejected=0.1")
    require_equal(allowed, _performed(allowed), serial_of(allowed))


def test_a_file_that_a_node_does_not_see_is_a_sentence_about_nodes(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(line("q") + "\n")
    run = _run(tmp_path, [{"name": "x", "format": "messages", "uri": str(tmp_path / "x.jsonl")}])

    class Elsewhere(HereCalls):
        def each(self, *arguments: Any) -> Iterator[dict[str, Any]]:
            (tmp_path / "x.jsonl").unlink()
            return super().each(*arguments)

    with pytest.raises(StageError, match=r"x\.jsonl'; tasks on every node read the sources"):
        write_rows(run, run.folder("rows"), Elsewhere())


def test_sources_pieces_and_parts_on_an_object_store(s3: str, s3_requests: list[str], tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3", **options("s3://"))
    draw = random.Random(4)
    for number in range(60):
        fs.pipe(f"bucket/prepare-in/{number:03d}.jsonl", b"\n".join(_mixed(6, draw)))
    fs.pipe("bucket/prepare-in/large.jsonl", b"\n".join(_mixed(80, draw)))
    source = [{"name": "x", "format": "messages", "uri": f"{s3}/prepare-in"}]
    run = _run(tmp_path, source, f"storage={s3}/prepare-runs", "rows.split_bytes=3000", "rows.rows_per_file=40")
    s3_requests.clear()
    metrics = write_rows(run, run.folder("rows"), HereCalls())
    num_splits = sum(name == "put_object" for name in s3_requests)
    assert s3_requests.count("get_object") <= 61 + 10 * num_splits, Counter(s3_requests)
    require_equal(run, metrics, serial_of(run))
