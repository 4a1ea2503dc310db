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


def test_an_object_store_is_filled_in_place() -> None:
    target = Storage("memory://replaced/out")
    (target / "old").write_bytes(b"")
    with target.replaced() as folder:
        (folder / "new").write_bytes(b"")
    assert target.names() == ["new"]
