"""What both GPU commands share: checks that fail, end or hang, sizes in words, speeds from event files, the machine."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tensorboardX import SummaryWriter

from actors.kernels import machine
from data.errors import UserError
from jobs import gpu_bench, gpu_smoke
from jobs.gpu_checks.checks import Check, CheckFailed, Skipped, deadline, failures, not_run, run_all
from jobs.gpu_checks.events import steady, values
from jobs.gpu_checks.machine import ray_check
from jobs.gpu_checks.sizes import KNOWN, SLACK, size_of
from jobs.gpu_checks.target import Target, target

GPUS = Target("gpu", 2)


@pytest.mark.parametrize("word", ["1M", "10m", "100M", "500M", "1B", "3B", "8B", "13B"])
def test_a_size_in_words_has_a_shape_of_that_size(word: str) -> None:
    size = size_of(word)
    wanted = float(word[:-1]) * {"M": 1e6, "B": 1e9}[word[-1].upper()]
    assert word in KNOWN or abs(size.num_parameters / wanted - 1) <= SLACK
    assert size.shape.num_heads % size.shape.num_kv_heads == 0


def test_known_sizes_are_those_of_the_published_models() -> None:
    assert (size_of("1B").num_parameters, size_of("8B").num_parameters) == (1_235_814_400, 8_030_261_248)


@pytest.mark.parametrize("word", ["", "big", "10", "1K", "900B"])
def test_another_size_is_a_user_error(word: str) -> None:
    with pytest.raises(UserError, match=r"size"):
        size_of(word)


def test_a_failure_is_one_line_and_the_others_still_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise RuntimeError("first line\nCUDA error: an illegal memory access")

    def wrong() -> str:
        raise CheckFailed("losses differ by 0.3")

    def absent() -> str:
        raise Skipped("vLLM is not installed")

    checks = {"a": broken, "b": wrong, "c": absent, "d": lambda: "fine"}
    log_file = tmp_path / "failures.log"
    results = run_all([Check(name, run, 60) for name, run in checks.items()], log_file, total=5, done=1)
    assert [r.state for r in results] == ["FAILED", "FAILED", "skipped", "ok"]
    assert failures(results) == ["a: RuntimeError: CUDA error: an illegal memory access", "b: losses differ by 0.3"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "[2 of 5] a ..."
    assert printed[-1].startswith("[5 of 5] d: ok, 0.")
    assert "in broken" in log_file.read_text()


def test_a_check_that_does_not_end_is_stopped() -> None:
    before, started = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(CheckFailed, match=r"it had not ended after 0\.1 s"), deadline(0.1):
        time.sleep(30)
    assert time.monotonic() - started < 20
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(KeyboardInterrupt), deadline(60):
        raise KeyboardInterrupt  # Ctrl-C ends the command


def test_what_a_training_wrote_for_tensorboard_is_read_back(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    for step, speed in enumerate([1.0, 5.0, 100.0, 102.0, 101.0]):
        writer.add_scalar("tokens_per_s", speed, step)
    writer.close()
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b"\x09\x00\x00\x00")  # cut off by a kill
    found = values(tmp_path)["tokens_per_s"]
    assert found == [1.0, 5.0, 100.0, 102.0, 101.0]
    assert (steady(found), steady([3.0])) == (101.0, 3.0)


@pytest.mark.parametrize("main", [gpu_smoke.main, gpu_bench.main])
def test_without_a_gpu_there_is_one_sentence(
    main: Callable[[Sequence[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([])
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (1, 1)
    assert "torch sees no GPU on this machine" in error
    assert "--device cpu" in error
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(SystemExit):
        main(["--device", "cpu"])
    assert "unset it" in capsys.readouterr().err


def test_gpus_are_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "NVIDIA H100 80GB HBM3", 79 * 2**30

    assert (machine.num_gpus(), machine.gpu_names(), machine.gpu_memory_bytes()) == (0, [], None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    assert machine.gpu_names()[0] == "2 x NVIDIA H100 80GB HBM3, 79 GiB"
    assert machine.gpu_memory_bytes() == 79 * 2**30
    assert target("gpu", machine.num_gpus()) == GPUS


def test_a_ray_that_sees_fewer_gpus_than_torch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Cluster:
        num_gpus: float

    @contextlib.contextmanager
    def connect(num_cpus: int, object_store_bytes: int) -> Iterator[Cluster]:
        yield found

    monkeypatch.setattr("jobs.gpu_checks.machine.connect", connect)
    with contextlib.ExitStack() as stack:
        found = Cluster(2)
        assert ray_check(GPUS, stack).run() == str(found)
        found = Cluster(1)
        with pytest.raises(CheckFailed, match="torch sees 2 GPUs, Ray 1"):
            ray_check(GPUS, stack).run()


def test_without_ray_nothing_else_runs() -> None:
    results = not_run([Check("a", lambda: "never", 1)], "Ray has not started")
    assert [(r.name, r.state, r.found) for r in results] == [("a", "skipped", "Ray has not started")]
