"""What a finished stage left is compared at each start: a deleted, cut or swapped file is noticed. No Ray."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stages import Calls, demo_run, stage_of

from data import stage_files
from data.run_layout import MANIFEST
from data.shards import write
from data.storage import Storage
from jobs.runner.stage import Run, Stage, StageError, perform


def _three_files(name: str, calls: list[str], **more: Any) -> Stage:
    def work(run: Run, folder: Storage) -> Calls:
        calls.append(name)
        for number in range(3):
            file = folder / "rows" / f"part-{number}.parquet"
            if not file.exists():
                calls.append(f"{name}{number}")
                file.write_bytes(bytes([number]) * 100)
        (folder / "log.txt").write_bytes(b"log")
        return Calls(n=3)

    return Stage(name, (), lambda preset: {"seed": preset.seed}, work, **more)


def _delete(file: Path) -> None:
    file.unlink()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def _swap(file: Path) -> None:
    file.write_bytes(b"x" * file.stat().st_size)


DAMAGE = {_delete: "missing", _cut: "of another size", _lengthen: "of another size", _swap: "of other content"}


@pytest.mark.case("A4: deleted, cut, swapped")
@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("name", ["rows/part-0.parquet", "rows/part-1.parquet", "rows/part-2.parquet", "log.txt"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_noticed_at_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str, resumes: bool
) -> None:
    calls: list[str] = []
    run, stage = demo_run(tmp_path), _three_files("a", calls, resumes=resumes)
    perform(run, stage)
    assert perform(run, stage).skipped
    whole = {file: (run.folder("a") / file).checksum() for file in ("log.txt", "rows")}
    damage(tmp_path / "demo" / "a" / name)
    calls.clear()
    with pytest.raises(StageError, match=rf"1 of 4 files is {DAMAGE[damage]} \({name}\); run `python -m jobs.run`"):
        perform(run, stage_of("b", [], ("a",)))
    assert not perform(run, stage).skipped
    assert f"[a] running: 1 of 4 files is {DAMAGE[damage]} ({name})" in capsys.readouterr().out
    assert {file: (run.folder("a") / file).checksum() for file in whole} == whole
    parts = [call for call in calls if call != "a"]
    kept = resumes and name != "log.txt"
    assert parts == ([f"a{name[10]}"] if kept else [] if resumes else ["a0", "a1", "a2"])
    assert perform(run, stage).skipped
    perform(run, stage_of("b", [], ("a",)))


@pytest.mark.case("A4: copies")
def test_a_copied_or_touched_run_is_as_good(tmp_path: Path) -> None:
    calls: list[str] = []
    perform(demo_run(tmp_path / "one"), _three_files("a", calls))
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    os.utime(tmp_path / "one" / "demo" / "a" / "log.txt", (0, 0))
    for folder in ("one", "two"):
        assert perform(demo_run(tmp_path / folder), _three_files("a", calls)).skipped


@pytest.mark.case("A4: one file too many")
def test_a_file_that_readers_would_take_for_the_stages_own_stops_thedemo_run(tmp_path: Path) -> None:
    run, stage = demo_run(tmp_path), _three_files("a", [])
    perform(run, stage)
    (run.folder("a") / "rows" / "part-3.parquet").write_bytes(b"x")
    with pytest.raises(StageError, match=r"rows/part-3.parquet is not one of the 4 files it left; move it away"):
        perform(run, stage)
    with pytest.raises(StageError, match=r"of .*/demo/a rows/part-3.parquet is not one of the 4 files it left"):
        perform(run, stage_of("b", [], ("a",)))


def test_what_dies_late_leaves_no_doubt(tmp_path: Path) -> None:
    """A worker that outlives its driver, a writer that died, and the desktop leave files that count for nothing."""
    run, stage = demo_run(tmp_path), _three_files("a", [])
    perform(run, stage)
    for name in ("rows.pieces/f/part-0.000000000-000000256.parquet", "rows/part-0.parquet.ab12.tmp", ".DS_Store"):
        (run.folder("a") / name).write_bytes(b"x")
    assert perform(run, stage).skipped


def test_without_its_list_of_files_a_changed_stage_runs_again(tmp_path: Path) -> None:
    calls: list[str] = []
    run, stage = demo_run(tmp_path), _three_files("a", calls, resumes=True)
    perform(run, stage)
    (run.folder("a") / "files.json").write_json([])
    assert perform(run, stage).skipped  # nothing has changed, so nobody looks
    os.utime(tmp_path / "demo" / "a" / "log.txt", (0, 0))
    calls.clear()
    assert not perform(run, stage).skipped
    assert calls == ["a", "a0", "a1", "a2"]


def test_a_manifest_of_a_version_that_recorded_no_files_is_trusted(tmp_path: Path) -> None:
    run, stage = demo_run(tmp_path), _three_files("a", [])
    done = perform(run, stage).manifest
    file = run.folder("a") / MANIFEST
    file.write_json({key: value for key, value in file.read_json().items() if key != "files"})
    (tmp_path / "demo" / "a" / "log.txt").unlink()
    assert perform(run, stage).manifest == done.model_copy(update={"files": None})


def test_a_damaged_model_is_trained_again(tmp_path: Path) -> None:
    """As `jobs.pipelines.fit` does it: `training.json` says that there is a model."""
    trained = []

    def work(run: Run, folder: Storage) -> Calls:
        for output in (folder, folder / "fold-0"):
            if not (output / "training.json").exists():
                trained.append(output.uri)
                (output / "model" / "model.safetensors").write_bytes(b"weights")
                (output / "training.json").write_json({})
        return Calls(n=1)

    run, stage = demo_run(tmp_path), Stage("a", (), lambda preset: {}, work, resumes=True)
    for damaged in (run.folder("a"), run.folder("a") / "fold-0"):
        perform(run, stage)
        trained.clear()
        _cut(Path((damaged / "model" / "model.safetensors").path))
        perform(run, stage)
        assert trained == [damaged.uri]


def test_a_stage_below_another_is_none_of_its_business(tmp_path: Path) -> None:
    """As `benchmarks`, below which `jobs.answer` keeps its answers."""
    run, below = demo_run(tmp_path), _three_files("a/b/c", [])
    perform(run, below)
    perform(run, stage_of("a", []))
    files = run.folder("a/b/c").checksum()
    (run.folder("a/b/c") / "more.parquet").write_bytes(b"x")
    assert perform(run, stage_of("a", [])).skipped
    (run.folder("a/b/c") / "more.parquet").remove()
    assert not perform(demo_run(tmp_path, "seed=7"), stage_of("a", [])).skipped
    assert run.folder("a/b/c").checksum() == files
    assert perform(run, below).skipped


def test_pages_may_be_written_again_and_must_be_there(tmp_path: Path) -> None:
    def work(run: Run, folder: Storage) -> Calls:
        for name in ("model/weights.safetensors", "model/README.md", "report.html", "figures/a.svg", "training.json"):
            (folder / name).write_bytes(b"first")
        return Calls(n=1)

    run, stage = demo_run(tmp_path), Stage("a", (), lambda preset: {}, work, resumes=True)
    perform(run, stage)
    for name in ("model/README.md", "report.html", "figures/a.svg"):
        (run.folder("a") / name).write_bytes(b"completed by the report")
        assert perform(run, stage).skipped
        (run.folder("a") / name).remove()
        assert not perform(run, stage).skipped


@pytest.mark.case("A4: on an object store")
def test_on_an_object_store_too(s3: str, tmp_path: Path) -> None:
    calls: list[str] = []
    run, stage = demo_run(tmp_path, f"storage={s3}/stage-files"), _three_files("a", calls)
    perform(run, stage)
    assert perform(run, stage).skipped
    part = run.folder("a") / "rows" / "part-1.parquet"
    content = part.fs.cat_file(part.path)
    part.write_bytes(content)
    assert perform(run, stage).skipped
    part.write_bytes(b"x" * len(content))
    with pytest.raises(StageError, match=r"1 of 4 files is of other content \(rows/part-1.parquet\)"):
        perform(run, stage_of("b", [], ("a",)))
    assert not perform(run, stage).skipped
    part.remove()
    with pytest.raises(StageError, match=r"1 of 4 files is missing \(rows/part-1.parquet\)"):
        perform(run, stage_of("b", [], ("a",)))


@pytest.mark.parametrize("place", [0, 100_000, 199_999])
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_large_files_are_sampled_at_their_start_middle_and_end(s3: str, tmp_path: Path, where: str, place: int) -> None:
    folder = Storage(str(tmp_path) if where == "disk" else f"{s3}/sampled/{place}")
    content = bytearray(os.urandom(200_000))
    (folder / "a.parquet").write_bytes(bytes(content))
    record = stage_files.record_files(folder)
    content[place] ^= 1
    (folder / "a.parquet").write_bytes(bytes(content))
    found = stage_files.difference(folder, record)
    assert found
    assert found.swapped == ("a.parquet",)


def test_only_a_bounded_sample_is_read_of_many_copied_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Storage(str(tmp_path))
    for number in range(300):
        (tmp_path / f"{number:03d}.parquet").write_bytes(b"%03d" % number)
    record = stage_files.record_files(folder)
    for file in tmp_path.glob("*.parquet"):
        os.utime(file, (0, 0))
    read: list[str] = []
    sample = stage_files._sample
    monkeypatch.setattr(stage_files, "_sample", lambda file, size: read.append(file.uri) or sample(file, size))
    assert stage_files.difference(folder, record) is None
    assert len(read) == 100
    record = stage_files.record_files(folder)
    _swap(tmp_path / "007.parquet")
    found = stage_files.difference(folder, record)
    assert found
    assert found.swapped == ("007.parquet",)


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_the_content_of_rows_is_recorded_and_the_same_in_any_storage(s3: str, tmp_path: Path, where: str) -> None:
    here = Storage(str(tmp_path / "here"))
    there = Storage(str(tmp_path / "there") if where == "disk" else f"{s3}/content")
    tables = [pa.table({"id": [f"{part}"]}) for part in range(2)]
    for folder in (here, there):
        for part, table in enumerate(tables):
            write([table], table.schema, folder / "rows" / f"part-{part}.parquet")
        (folder / "log.txt").write_bytes(folder.uri.encode())
    one, other = map(stage_files.record_files, (here, there))
    assert one.content
    assert one.content == other.content
    assert one.digest != other.digest
    assert stage_files.with_pages(here, one, ["README.md"]).content == one.content
    write([tables[0]], tables[0].schema, there / "rows" / "part-1.parquet")
    assert stage_files.record_files(there).content not in ("", one.content)


def test_without_a_digest_in_each_file_the_content_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = Storage(str(tmp_path)), pa.table({"id": ["a"]})
    write([table], table.schema, folder / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    assert stage_files.record_files(folder).content == ""
    (tmp_path / "b.parquet").write_bytes(b"torn")
    assert stage_files.record_files(folder).content == ""
    (tmp_path / "b.parquet").unlink()
    assert stage_files.record_files(folder).content
    monkeypatch.setattr(stage_files, "MOST_FOOTERS", 0)
    monkeypatch.setattr(Storage, "is_local", False)
    assert stage_files.record_files(folder).content == ""
