import errno
import os
import re
import shutil
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from data.storage import Storage, Unwritable


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_write_read_upload_remove(kind: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "run") if kind == "disk" else f"memory://{tmp_path.name}/run")
    (storage / "a" / "x.json").write_json({"é": 1})
    assert (storage / "a" / "x.json").read_json() == {"é": 1}
    local = tmp_path / "local"
    (local / "deep").mkdir(parents=True)
    (local / "deep" / "f.txt").write_text("hi")
    (storage / "b").upload(str(local))
    assert [p.rsplit("/", 1)[-1] for p in storage.files()] == ["x.json", "f.txt"]
    storage.remove()
    assert not storage.exists()
    storage.remove()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Storage(str(tmp_path / "manifest.json"))
    target.write_json({"old": True})

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        target.write_json({"new": True})
    assert target.read_json() == {"old": True}
    assert target.path == Storage(str(tmp_path)).files()[0]
    assert len(Storage(str(tmp_path)).files()) == 1


def test_an_unwritable_place_is_one_sentence_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        Unwritable,
        match=r"^cannot write /.*/file/m\.json: File exists; free space or get access there, "
        "or set `storage` to another place$",
    ):
        Storage(str(tmp_path / "file" / "m.json")).write_json({})


def test_files_are_named_removed_and_summed_up(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "f"))
    assert folder.names() == []
    for name in ("b.parquet", "a/c.parquet", "d.txt"):
        (folder / name).write_bytes(name.encode())
    assert folder.names(".parquet") == ["a/c.parquet", "b.parquet"]
    before = folder.checksum()
    assert before == folder.checksum()
    (folder / "d.txt").write_bytes(b"other")
    assert folder.checksum() != before
    assert len({(folder / name).checksum() for name in ("b.parquet", "a", "a/c.parquet", "d.txt")}) == 4, (
        "files and folders alike"
    )
    folder.remove_files(["b.parquet", "never-there"])
    assert folder.names() == ["a/c.parquet", "d.txt"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(ValueError, match=r"m\.json is no JSON .*delete it"):
        Storage(str(tmp_path / "m.json")).read_json()


def test_home_and_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/runs").uri == str(tmp_path / "runs")
    assert Storage("runs").uri.startswith("/")
    assert Storage("s3://bucket/x").path == "bucket/x"


def test_arrow_filesystem_reads_what_fsspec_wrote(tmp_path: Path) -> None:
    import pyarrow as pa

    for uri in (str(tmp_path), f"memory://{tmp_path.name}"):
        storage = Storage(uri) / "t"
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": ["a"]}), buffer)
        (storage / "p.parquet").write_bytes(buffer.getvalue().to_pybytes())
        assert [t.to_pydict() for t in storage.tables()] == [{"id": ["a"]}]
    assert fsspec.filesystem("memory").exists(f"/{tmp_path.name}/t/p.parquet")


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    target = Storage(str(tmp_path / "out"))
    for content in (b"first", b"second"):
        with target.replaced() as folder:
            (folder / "a" / content.decode()).write_bytes(content)
            assert not (target / "a" / content.decode()).exists(), "nothing of it is seen before it is whole"
        assert target.names() == [f"a/{content.decode()}"]

    def break_off() -> None:
        with target.replaced() as folder:
            (folder / "half").write_bytes(b"")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert target.names() == ["a/second"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("uri", ["{}/deep/file", "memory://{}/file"])
def test_a_file_that_is_written_in_parts_appears_whole_or_not_at_all(uri: str, tmp_path: Path) -> None:
    target = Storage(uri.format(tmp_path))

    def write(content: bytes, fails: bool = False) -> None:
        with target.written() as path:
            Path(path).write_bytes(content)
            if fails:
                raise OSError(28, "No space left on device")

    write(b"first")
    with pytest.raises(Unwritable, match=r"^cannot write .*/file: No space left on device; free space"):
        write(b"second", fails=True)
    assert (target.size(), target.read_text()) == (5, "first")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"] * target.is_local


def test_an_object_store_is_filled_in_place() -> None:
    target = Storage("memory://replaced/out")
    (target / "old").write_bytes(b"")
    with target.replaced() as folder:
        (folder / "new").write_bytes(b"")
    assert target.names() == ["new"]


def _filled(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return str(folder)


def _failing_rename(monkeypatch: pytest.MonkeyPatch, *fails: int) -> None:
    """`os.rename` fails at the calls of these numbers."""
    real, calls = os.rename, iter(range(100))

    def rename(source: str, target: str) -> None:
        if next(calls) in fails:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr("os.rename", rename)


@pytest.mark.case("A5: a rename that fails")
@pytest.mark.parametrize("fails", [(0,), (1,), (1, 2)])
def test_neither_the_old_folder_nor_the_new_is_lost_if_a_rename_fails(
    fails: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(1, 2): the old folder cannot be put back, either."""
    target = Storage(_filled(tmp_path / "out", "old"))
    _failing_rename(monkeypatch, *fails)
    with (
        pytest.raises(Unwritable, match=r"^cannot replace .*/out: Permission denied; nothing is lost, .* is kept; get"),
        target.replaced() as folder,
    ):
        (folder / "new").write_bytes(b"new")
    found = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["new", "old"]
    assert (target.names() == ["old"]) == (fails != (1, 2))


@pytest.mark.case("A5: an upload that fails half way")
def test_an_upload_takes_the_place_of_the_old_folder_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, local = Storage(_filled(tmp_path / "out", "old")), _filled(tmp_path / "local", "a", "deep/b")
    real, done = shutil.copyfile, []

    def copyfile(source: str, beside: str) -> None:
        if done:
            raise OSError(28, "No space left on device")
        done.append(real(source, beside))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", copyfile)
        with pytest.raises(Unwritable, match="No space left"):
            target.upload(local)
    assert target.names() == ["old"]
    target.upload(local)
    assert target.names() == ["a", "deep/b"]


@pytest.mark.case("A5: an upload to an object store")
def test_on_an_object_store_new_files_are_there_before_old_ones_go(tmp_path: Path) -> None:
    target = Storage(f"memory://{tmp_path.name}/out")
    for name in ("config.json", "old.safetensors"):
        (target / name).write_bytes(b"old")
    local = _filled(tmp_path / "local", "config.json", "new.safetensors")
    removed: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        remove = Storage.remove_files
        patch.setattr(Storage, "remove_files", lambda self, n: (removed.append(self.names()), remove(self, n))[1])
        target.upload(local)
    assert removed == [["config.json", "new.safetensors", "old.safetensors"]], "all is there when the first goes"
    assert target.names() == ["config.json", "new.safetensors"]
    assert (target / "config.json").read_text() == "config.json"


@pytest.mark.case("A5: power goes between data and mark")
def test_data_is_on_the_disk_before_the_file_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No write may wait in memory when a later one that speaks of it is on the disk: data, its names, then the mark."""
    done: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def name(path: str) -> str:
        return re.sub(r"\.[0-9a-f]{8}\.tmp", ".tmp", os.path.relpath(path, tmp_path))

    monkeypatch.setattr(
        "os.fsync", lambda n: (done.append(("sync", name(os.readlink(f"/proc/self/fd/{n}")))), fsync(n))
    )
    monkeypatch.setattr("os.replace", lambda a, b: (done.append(("move", name(b))), replace(a, b)))
    monkeypatch.setattr("os.rename", lambda a, b: (done.append(("move", name(b))), rename(a, b)))
    local = _filled(tmp_path / "local", "model.safetensors")
    Storage(str(tmp_path / "out" / "model")).upload(local)
    Storage(str(tmp_path / "out" / "training.json")).write_json({})
    upload, mark = done[: done.index(("move", "out/model")) + 2], done[done.index(("move", "out/model")) + 2 :]
    assert upload[-5:] == [
        ("sync", "out/model.tmp"),  # the name of the file
        ("sync", "out/model.tmp/model.safetensors"),
        ("sync", "out/model.tmp"),
        ("move", "out/model"),
        ("sync", "out"),
    ]
    assert upload[:4] == [
        ("sync", "out"),  # the new folders
        ("sync", "."),
        ("sync", "out/model.tmp/model.safetensors.tmp"),
        ("move", "out/model.tmp/model.safetensors"),
    ]
    assert mark == [("sync", "out/training.json.tmp"), ("move", "out/training.json"), ("sync", "out")]


@pytest.mark.case("A5: a filesystem that cannot sync folders")
def test_a_filesystem_without_fsync_for_folders_is_no_error_but_a_full_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, code = os.fsync, [errno.EINVAL]

    def for_files_only(number: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(code[0], os.strerror(code[0]))
        fsync(number)

    monkeypatch.setattr("os.fsync", for_files_only)
    Storage(str(tmp_path / "a")).write_bytes(b"x")
    code[0] = errno.EIO
    with pytest.raises(Unwritable, match="Input/output error"):
        Storage(str(tmp_path / "b")).write_bytes(b"x")
