"""What tests share: one local Ray for the whole session, tiny random models, the real rows, and the demo's run."""

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.hookimpl(optionalhook=True)  # the environment of vLLM has no pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` runs two processes: one has all tests with Ray, in one cluster, the other takes the rest.

    A file is never split: its fixtures are made once.
    """
    from xdist.scheduler import LoadScopeScheduling

    class RayInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid.partition("::")[0])

    return RayInOneProcess(config, log)


@functools.cache
def _scope(path: str) -> str:
    return "ray" if "ray_cluster" in (REPOSITORY / path).read_text(encoding="utf-8") else path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


S3_PORT = free_port()
# Before Ray starts: its workers inherit the environment. The server itself starts only for tests that ask for `s3`.
os.environ.update(
    AWS_ENDPOINT_URL=f"http://127.0.0.1:{S3_PORT}",
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    AWS_DEFAULT_REGION="us-east-1",
)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[object]:
    from cluster.connect import connect

    with connect(num_cpus=6, object_store_bytes=200 * 2**20) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the S3 server says of itself: a line with `HTTP/1.1` for each request, whatever process sent it."""
    return tmp_path_factory.mktemp("s3") / "server.log"


@pytest.fixture(scope="session")
def s3(s3_log: Path) -> Iterator[str]:
    """A bucket on a local S3 server, a process of its own, as a URI."""
    import fsspec

    from data.storage import options

    with s3_log.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(S3_PORT)], stdout=subprocess.DEVNULL, stderr=log
        )
    wait_for(S3_PORT, server)
    fsspec.filesystem("s3", **options("s3://")).mkdir("bucket")
    yield "s3://bucket"
    server.terminate()
    server.wait(10)


@pytest.fixture
def s3_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of this process's requests to the S3 server, as they come."""
    import s3fs

    found: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        found.append(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return found


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Until the server answers; fails if it ended instead."""
    for _ in range(600):
        assert server.poll() is None, f"the server on port {port} ended with exit code {server.returncode}"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing answers on port {port} after a minute")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real rows; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("STEERLM_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real rows at {folder}; set STEERLM_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def demo_run() -> Path:
    """The finished run of `make demo`, on which the targets of its tests depend: without it they fail."""
    run = Path(os.environ.get("STEERLM_DEMO_RUN", REPOSITORY / "runs" / "demo"))
    if not (run / "report" / "manifest.json").exists():
        pytest.fail(f"no finished run at {run}: `make demo` makes one")
    return run


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama of 60,000 parameters with a tokenizer trained on the synthetic world."""
    return _small_base(tmp_path_factory, hidden_size=32, num_heads=4, num_kv_heads=2)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained model out of its package, in safetensors; for tests marked `NOT_INSTALLED`."""
    from support.real_model import NUM_PARAMETERS, PACKAGE

    from actors.modeling.gguf_model import convert

    folder = str(tmp_path_factory.mktemp("smollm2"))
    assert convert(PACKAGE, folder) == NUM_PARAMETERS
    return folder


@pytest.fixture(scope="session")
def wide_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy whose heads are 32 wide, the smallest that vLLM's kernels for CPUs take."""
    from actors.modeling.policy import PolicyTask
    from data.attributes import shipped

    return _saved(
        PolicyTask(
            _small_base(tmp_path_factory, hidden_size=64, num_heads=2, num_kv_heads=1), shipped("lab"), "steerlm"
        ),
        tmp_path_factory,
    )


def _small_base(tmp_path_factory: pytest.TempPathFactory, **shape: int) -> str:
    from actors.modeling.settings import SmallModel
    from actors.modeling.tiny_llama import make_small_model
    from data.lab import Lab, LabSettings

    folder = str(tmp_path_factory.mktemp("base"))
    texts = [m.content for row in Lab(LabSettings(num_rows=300)).rows() for m in row.messages]
    make_small_model(
        SmallModel.model_validate(
            {**shape, "num_layers": 2, "intermediate_size": 64, "vocab_size": 600, "max_tokens": 512}
        ),
        texts,
        0,
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def tiny_policy(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy folder with random weights and schema `lab`, saved as training saves it."""
    from actors.modeling.policy import PolicyTask
    from data.attributes import shipped

    return _saved(PolicyTask(tiny_base, shipped("lab"), "steerlm"), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_predictor(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A predictor folder with random weights and schema `lab`, saved as training saves it."""
    from actors.modeling.regressor import PredictorTask
    from data.attributes import shipped

    return _saved(PredictorTask(tiny_base, shipped("lab"), "steerlm"), tmp_path_factory)


def _saved(task: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    module = task.build()  # type: ignore[attr-defined]
    task.save(module, module.state_dict(), folder)  # type: ignore[attr-defined]
    return folder
