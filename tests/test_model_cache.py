"""Local copies of models: whose folder, how much, and that nothing in use is removed. No torch is needed."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from actors.modeling import model_cache
from actors.modeling.model_cache import SIZE_VARIABLE, is_text_file, local_copy
from data.errors import UserError
from data.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_held", {})
    yield tmp_path / "cache" / "steerlm" / "models"
    for descriptor in model_cache._held.values():
        os.close(descriptor)


def model(name: str, size: int = MIB) -> Storage:
    folder = Storage(f"memory://models/{name}")
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(name.encode() * (size // len(name)))
    return folder


def released() -> None:
    """As if the process that used the copies had ended."""
    for descriptor in model_cache._held.values():
        os.close(descriptor)
    model_cache._held.clear()


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_a_copy_is_made_once_for_each_content(cache: Path) -> None:
    first = local_copy(model("a"))
    assert local_copy(Storage("memory://models/a")) == first
    assert sorted(os.listdir(first)) == ["config.json", "model.safetensors"]
    (Storage("memory://models/a") / "config.json").write_bytes(b'{"changed": 1}')
    assert local_copy(Storage("memory://models/a")) != first
    assert len(names(cache)) == 2


@pytest.mark.case("A2: a model named by file:// stays where it is")
def test_a_local_folder_is_used_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert local_copy(Storage(f"file://{tmp_path}/mine")) == str(tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").exists()


def test_nobody_else_can_write_it(cache: Path) -> None:
    before = os.umask(0)
    try:
        local_copy(model("a"))
    finally:
        os.umask(before)
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    cache.parent.chmod(0o777)
    local_copy(model("b"))
    assert cache.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.case("B13: a model cache that another user owns")
@pytest.mark.parametrize("theirs", ["owner", "link", "file"])
def test_a_cache_of_somebody_else_is_refused(
    theirs: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = cache.parent
    root.parent.mkdir()
    if theirs == "owner":
        root.mkdir()
        monkeypatch.setattr(os, "getuid", lambda: root.stat().st_uid + 1)
    elif theirs == "link":
        root.symlink_to(tmp_path)
    else:
        root.write_text("")
    with pytest.raises(UserError, match=r"is not a folder of this user .+ XDG_CACHE_HOME") as error:
        local_copy(model("a"))
    assert len(str(error.value)) < 400 + len(str(root))


def test_without_a_home_it_is_a_private_folder_in_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = Path(local_copy(model("a")))
    assert copy.parent == tmp_path / f"steerlm-{os.getuid()}" / "models"
    assert copy.parent.parent.stat().st_mode & 0o777 == 0o700


def aged(copy: str, seconds: float) -> None:
    os.utime(copy, (time.time() - seconds,) * 2)


@pytest.mark.case("B13: a model cache that grows for ever")
def test_the_oldest_that_nobody_uses_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, str(3.5 / 1024))
    a, b, c = (local_copy(model(name)) for name in "abc")
    released()
    aged(a, 100), aged(b, 300), aged(c, 200)
    assert local_copy(Storage("memory://models/b")) == b, "used again, so no longer the oldest"
    released()
    d = local_copy(model("d"))
    assert names(cache) == {Path(path).name for path in (a, b, d)}, "c was unused for longest"


def test_what_is_in_use_stays_even_if_it_is_too_much(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    a = local_copy(model("a"))
    code = "import sys; from actors.modeling.model_cache import *; from actors.modeling import model_cache as m; "
    code += "from pathlib import Path; assert m._hold(Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, a], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        released()
        b = local_copy(model("b"))
        assert names(cache) == {Path(a).name, Path(b).name}
        other.stdin.write("\n")
    released()
    c = local_copy(model("c"))
    assert names(cache) == {Path(c).name}


def test_what_a_killed_download_left_goes(cache: Path) -> None:
    a = local_copy(model("a"))
    (cache / f"left{model_cache.UNFINISHED}").mkdir()
    b = local_copy(model("b"))
    assert names(cache) == {Path(a).name, Path(b).name}


def test_who_waits_for_a_download_does_not_wait_for_its_reader_to_end(tmp_path: Path) -> None:
    """The downloader keeps the folder locked, to read it, for as long as its process lives."""
    beside = tmp_path / f"model{model_cache.UNFINISHED}"
    beside.mkdir()
    downloads = os.open(beside, os.O_RDONLY)
    fcntl.flock(downloads, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(model_cache._turn, beside, "s3://models/a", MIB)
        with pytest.raises(TimeoutError):
            waits.result(3 * model_cache.POLL_S)
        beside.rename(tmp_path / "model")
        fcntl.flock(downloads, fcntl.LOCK_SH)
        try:
            assert waits.result(60) is None
        finally:
            os.close(downloads)


def test_a_download_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = model("a")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(OSError, match="no space"):
        local_copy(storage)
    assert names(cache) == set()


def test_a_file_that_changed_meanwhile_is_no_copy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = model("a")
    monkeypatch.setattr(
        MemoryFileSystem, "get_file", lambda fs, path, local, **_: Path(local).write_bytes(b"not all of it")
    )
    with pytest.raises(OSError, match=r"model.safetensors has 13 bytes of 1,048,576|config.json has 13 bytes of 2"):
        local_copy(storage)
    assert names(cache) == set()


def test_only_what_a_model_is_loaded_from_is_copied(cache: Path) -> None:
    storage = model("a")
    needed = {
        "tokenizer.json",
        "spiece.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/x.jinja",
    }
    weights = {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    needless = {"pytorch_model.bin", "consolidated.safetensors", "README.md", "original/params.json", "onnx/model.onnx"}
    for name in needed | weights | needless:
        (storage / name).write_bytes(b"x")
    assert set(Storage(local_copy(storage)).names()) == {"config.json", "model.safetensors"} | needed | weights
    assert set(Storage(local_copy(storage, is_text_file)).names()) == {"config.json"} | needed


def test_nothing_to_copy_is_one_sentence(cache: Path) -> None:
    (Storage("memory://models/none") / "README.md").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^no readable model at memory://models/none: no file of a model is there"):
        local_copy(Storage("memory://models/none"))


@pytest.mark.parametrize("text", ["many", "-1", "nan", "1GiB"])
def test_a_size_that_is_none_is_one_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, text)
    with pytest.raises(UserError, match="write GiB, a number from 0 on"):
        local_copy(model("a"))


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()
