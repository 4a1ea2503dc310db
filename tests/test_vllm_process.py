"""The process of vLLM's engine core: whoever dies, nobody waits for ever and no process stays. `make test-vllm`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from support.engine_listener import Recorder
from support.engines import MAX_NUM_SEQS, NO_VLLM

from actors.generation.factory import load_engine
from actors.generation.protocol import Sampling, complete
from actors.generation.settings import EngineSettings

pytestmark = NO_VLLM

PARENT = Path(__file__).parent / "support" / "vllm_parent.py"
LONG = Sampling(400, seed=1, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(wide_policy: str) -> Iterator[object]:
    settings = EngineSettings(kind="vllm", max_num_seqs=MAX_NUM_SEQS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # it shall run a function of ours
        _, engine = load_engine(settings, wide_policy, "float32", num_threads=1)
        yield engine
        engine.close()


def started(engine: object) -> tuple[int, Recorder]:
    """A long answer that is being written."""
    listener = Recorder()
    number = engine.submit([5] * 20, LONG, listener)  # type: ignore[attr-defined]
    assert listener.started.wait(60)
    return number, listener


def found_there(worker: object) -> tuple[int, int, int]:
    return os.getpid(), torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])


def test_the_model_runs_in_another_process_with_the_threads_of_this_one(engine: object) -> None:
    pid = engine._process.pid  # type: ignore[attr-defined]
    assert psutil.Process(pid).parent() == psutil.Process()
    assert engine._engine.collective_rpc(found_there) == [(pid, 1, 1)]  # type: ignore[attr-defined]


def test_a_step_that_does_not_end_holds_up_no_cancel_and_no_request(engine: object) -> None:
    pid = engine._process.pid  # type: ignore[attr-defined]
    (first, cancelled), (_, beside) = started(engine), started(engine)
    late = Recorder()
    os.kill(pid, signal.SIGSTOP)
    try:
        engine.cancel(first)  # type: ignore[attr-defined]
        assert cancelled.ended.wait(20)
        engine.submit([7] * 20, Sampling(2, seed=1), late)  # type: ignore[attr-defined]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert late.ended.wait(60)
    assert beside.ended.wait(60)
    assert [h.steps[-1].finish for h in (cancelled, beside)] == ["cancelled", "length"]


def test_cancelled_to_the_last_it_waits_and_answers_the_next(engine: object) -> None:
    numbers = [started(engine)[0] for _ in range(MAX_NUM_SEQS)]
    for number in numbers:
        engine.cancel(number)  # type: ignore[attr-defined]
    [(ids, finish)] = complete(engine, [([5] * 20, Sampling(3, seed=1, ignore_eos=True))])  # type: ignore[arg-type]
    assert (len(ids), finish) == (3, "length")


def test_a_core_that_is_killed_ends_all_requests_with_a_sentence(engine: object) -> None:
    waiting = [started(engine)[1] for _ in range(MAX_NUM_SEQS)]
    waiting += [Recorder() for _ in range(3)]
    for listener in waiting[MAX_NUM_SEQS:]:
        engine.submit([5] * 20, LONG, listener)  # type: ignore[attr-defined]
    os.kill(engine._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert all(listener.ended.wait(30) for listener in waiting)
    assert {listener.steps[-1].finish for listener in waiting} == {"error"}
    assert engine.error is not None  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"engine is down: vLLM's engine core is down: .* ended by SIGKILL, as"):
        engine.submit([5], LONG, Recorder())  # type: ignore[attr-defined]


def test_a_killed_parent_leaves_no_process(wide_policy: str) -> None:
    parent = subprocess.Popen([sys.executable, str(PARENT), wide_policy], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = next(json.loads(line) for line in parent.stdout if line.startswith("["))
        processes = [psutil.Process(pid) for pid in pids]
        assert len([process for process in processes if "VLLM" in process.name()]) == 3, "the core and two parts"
    finally:
        parent.kill()
        parent.wait()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
