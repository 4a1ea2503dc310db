"""One download a node, counted on an S3 server; readers of texts never fetch weights."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from conftest import free_port, wait_for

from actors.modeling import model_cache
from actors.modeling.policy import PolicyText
from actors.scoring.preprocessor import AnnotatorInput
from actors.training.examples import ExampleSpec, TextExamples
from data.attributes import shipped
from data.storage import Storage, options

ROOT = Path(__file__).resolve().parent.parent
NEEDLESS = ("pytorch_model.bin", "consolidated.safetensors", "README.md", "onnx/model.onnx")
READER = """
import sys
from actors.modeling import model_cache
from data.storage import Storage
model_cache.FIRST_LINE_S = 0.2
print("ready", flush=True)
sys.stdin.readline()
print("found", model_cache.local_copy(Storage(sys.argv[1])), flush=True)
"""
WAIT_S = 240.0


class Counted:
    """A model on an S3 server that counts."""

    def __init__(self, uri: str, server: str):
        self.uri, self._server = uri, server

    def release(self) -> None:
        """Weights are sent from now on."""
        urllib.request.urlopen(f"{self._server}/release").read()

    def gets(self) -> dict[str, int]:
        """How often each file of the model was read."""
        found = json.loads(urllib.request.urlopen(f"{self._server}/reads").read())
        return {path.rpartition("/model/")[2]: count for path, count in found.items() if "/model/" in path}


@pytest.fixture
def served(tiny_policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """The tiny policy in two files of weights, with what lies beside weights on the hub."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "tests/support/slow_s3.py", str(port), "0", "hold"], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_for(port, server)
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_held", {})
    fs = fsspec.filesystem("s3", **options("s3://"))
    fs.clear_instance_cache()
    fs = fsspec.filesystem("s3", **options("s3://"))
    fs.mkdir("counted")
    model = Storage("s3://counted/model")
    for name in Storage(tiny_policy).names():
        (model / name).put(f"{tiny_policy}/{name}")
    (model / "model-00002-of-00002.safetensors").put(f"{tiny_policy}/model.safetensors")
    for name in NEEDLESS:
        (model / name).write_bytes(b"x" * 1000)
    yield Counted(model.uri, endpoint)
    for descriptor in model_cache._held.values():
        os.close(descriptor)
    server.terminate()
    server.wait(10)
    fsspec.filesystem("s3").clear_instance_cache()


class Reader:
    """A process that wants the whole model, ready to begin."""

    def __init__(self, uri: str, folder: Path, number: int):
        self._log = folder / f"reader-{number}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", READER, uri], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def begin(self) -> None:
        begin(self.process)

    def found(self) -> Path:
        """The copy, at the end."""
        assert self.process.wait(WAIT_S) == 0, self.said
        return Path(self.said.rpartition("found ")[2].strip())


def begin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_four_processes_make_one_download_and_say_what_they_wait_for(served: Counted, tmp_path: Path) -> None:
    four = [Reader(served.uri, tmp_path, number) for number in range(4)]
    until(lambda: all("ready" in reader.said for reader in four))
    for reader in four:
        reader.begin()
    waiting = f"waits for another one of this node, which downloads {served.uri}: 0.0"
    until(lambda: sum(waiting in reader.said for reader in four) == 3)
    served.release()
    assert len({reader.found() for reader in four}) == 1
    gets = served.gets()
    assert gets.pop("model.safetensors") == gets.pop("model-00002-of-00002.safetensors") == 1
    assert set(gets.values()) == {1}
    assert not set(gets) & set(NEEDLESS), "only safetensors, json, tokenizer and templates are fetched"


def test_a_killed_download_frees_the_others_who_keep_its_whole_files(served: Counted, tmp_path: Path) -> None:
    first, second = (Reader(served.uri, tmp_path, number) for number in range(2))
    until(lambda: "ready" in first.said and "ready" in second.said)
    first.begin()
    cache = tmp_path / "cache" / "steerlm" / "models"
    whole = Storage(served.uri)
    texts = {name for name in whole.names() if model_cache.is_text_file(name)}
    until(lambda: all(list(cache.glob(f"*/{name}")) for name in texts) and served.gets().get("model.safetensors"))
    second.begin()
    until(lambda: "waits for another one of this node" in second.said)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    until(lambda: served.gets()["model.safetensors"] == 2)
    served.release()
    folder = second.found()
    assert set(Storage(str(folder)).names()) == set(whole.names()) - set(NEEDLESS)
    assert (folder / "model.safetensors").stat().st_size == whole.fs.size((whole / "model.safetensors").path)
    assert {served.gets()[name] for name in texts} == {1}
    assert sorted(p.name for p in cache.iterdir()) == [folder.name]


def test_readers_of_texts_fetch_no_weights(served: Counted) -> None:
    text = PolicyText.load(served.uri)
    assert text.stop_ids
    TextExamples(ExampleSpec(served.uri, shipped("lab"), "steerlm", 64))
    empty = pa.table({name: pa.array([], kind) for name, kind in _row_columns().items()})
    AnnotatorInput(served.uri, "f", 64)(empty)
    gets = served.gets()
    assert gets["tokenizer.json"] == gets["config.json"] == 1
    assert not [name for name in gets if name.endswith(".safetensors")]
    assert not set(gets) & set(NEEDLESS)


def _row_columns() -> dict[str, pa.DataType]:
    from data.conversation import to_table

    schema = to_table([], shipped("lab")).schema
    return {name: schema.field(name).type for name in schema.names}
