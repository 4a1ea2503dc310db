"""What goes wrong in one worker while others wait: back to the last checkpoint, or one sentence with the setting."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import BroadcastCollectiveTimeoutError
from ray.train.v2.api.exceptions import NCCLHangError, WorkerGroupError
from torch.distributed import distributed_c10d

from actors.modeling.policy import PolicyTask
from actors.training import worker
from actors.training.collectives import limit_waiting
from actors.training.examples import ExampleSpec, PolicyExamples
from actors.training.out_of_memory import out_of_memory
from actors.training.settings import LearnerSettings
from actors.training.trainer import Assignment
from data.attributes import shipped
from data.calibration import Calibration
from data.conversation import to_table
from data.errors import UserError
from data.examples import Example, Split
from data.lab import Lab, LabSettings
from data.loader import Corpus, DataLoader
from data.storage import Storage
from jobs.pipelines.failure import reason_of
from jobs.pipelines.fit import _trainer, fit
from jobs.pipelines.map_rows import write_table
from jobs.runner.stage import StageError

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = shipped("lab")
SETTINGS = LearnerSettings(
    num_workers=2, precision="fp32", pack_tokens=256, max_tokens=256, packs_per_step=2, epochs=2,
    checkpoint_every=0.1, checkpoint_every_s=0, collective_timeout_s=40,
)  # fmt: skip
TOO_MUCH = 10**15
"""Bytes that no machine has."""


def _corpus(tiny_base: str, folder: Path) -> Corpus:
    rows = list(Lab(LabSettings(num_rows=60, rated_share=1)).rows())
    maker = PolicyExamples(ExampleSpec(tiny_base, SCHEMA, "steerlm", 256), "human", Calibration(), 0.0, seed=0)
    write_table(maker(to_table(rows, SCHEMA)), target := Storage(str(folder)) / "examples")
    return Corpus.of(target)


def _failing(base: str, folder: Path, forward: int, how: Literal["hangs", "allocates"], lives: int) -> PolicyTask:
    """The task, whose second worker hangs or allocates too much before that forward, in each of its first lives."""
    num_bytes = TOO_MUCH

    class Failing(PolicyTask):  # in a function, so that it travels by value
        def build(self) -> Any:
            object.__setattr__(self, "done", 0)
            return super().build()

        def inputs(self, rows: Sequence[Example], device: torch.device | str, pack_tokens: int = 0) -> dict[str, Any]:
            object.__setattr__(self, "done", self.done + 1)  # type: ignore[attr-defined]
            lived = len(list(folder.glob("life-*")))
            if dist.get_rank() == 1 and lived < lives and self.done == forward:  # type: ignore[attr-defined]
                (folder / f"life-{lived}").touch()
                time.sleep(600) if how == "hangs" else torch.empty(num_bytes, dtype=torch.uint8)
            return super().inputs(rows, device, pack_tokens)

    return Failing(base, SCHEMA, "steerlm")


def _allocate() -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: a collective that hangs")
def test_a_worker_that_hangs_is_found_and_the_training_goes_on_from_its_checkpoint(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    corpus, plain = _corpus(tiny_base, tmp_path), PolicyTask(tiny_base, SCHEMA, "steerlm")
    whole = fit("test", plain, SETTINGS, corpus, Storage(str(tmp_path / "whole")))
    started = time.monotonic()
    found = fit("test", _failing(tiny_base, tmp_path, 14, "hangs", 1), SETTINGS, corpus, Storage(str(tmp_path / "out")))
    assert time.monotonic() - started < 500
    assert (tmp_path / "life-0").exists()
    assert (found.steps, found.examples) == (whole.steps, whole.examples)
    one, other = ([point.loss for point in metrics.losses] for metrics in (whole, found))
    assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: a collective that hangs")
def test_a_worker_that_hangs_too_often_ends_the_training_with_the_setting(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"max_failures": 0})
    with pytest.raises(
        StageError, match=r"a worker waited for the others longer than collective_timeout_s \(.*raise it"
    ):
        fit(
            "test",
            _failing(tiny_base, tmp_path, 14, "hangs", 1),
            settings,
            _corpus(tiny_base, tmp_path),
            Storage(str(tmp_path / "out")),
        )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.case("A7: memory that runs out in a step")
def test_memory_that_runs_out_in_one_worker_is_one_sentence_with_what_helps(
    ray_cluster: object, tiny_base: str, tmp_path: Path
) -> None:
    task = _failing(tiny_base, tmp_path, 6, "allocates", 9)
    with pytest.raises(StageError) as caught:
        fit("test", task, SETTINGS, _corpus(tiny_base, tmp_path), Storage(str(tmp_path / "out")))
    assert str(caught.value).startswith("test failed: the node's memory ran out in step ")
    assert "pack_tokens below 256" in str(caught.value)
    assert len(list(tmp_path.glob("life-*"))) == 1, "a restart would only repeat it"


def _raised(how: Callable[[], object]) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        how()
    return caught.value


def _numpy() -> None:
    import numpy as np

    np.empty(TOO_MUCH, dtype=np.uint8)


def _inside() -> None:
    try:
        _allocate()
    except RuntimeError as error:
        raise ValueError("in the data loader") from error


@pytest.mark.parametrize("how", [_allocate, _numpy])
def test_real_errors_of_a_full_machine_are_known(how: Callable[[], object]) -> None:
    said = str(out_of_memory(_raised(how), SETTINGS, 6))
    assert said.startswith("the node's memory ran out in step 7 (")
    assert "lora: {}" in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            "the GPU's memory ran out",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "the GPU's memory ran out"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "the GPU's memory ran out",
        ),
        (OSError(12, "Cannot allocate memory"), "the node's memory ran out"),
        (MemoryError(), "the node's memory ran out at the start (MemoryError)"),
        (RuntimeError("size mismatch"), None),
        (ValueError("cannot reshape"), None),
    ],
)
def test_what_is_and_what_is_not_memory(error: Exception, begins: str | None) -> None:
    found = out_of_memory(error, SETTINGS, 0)
    assert found is None if begins is None else str(found).startswith(begins)


def test_the_cause_counts_too() -> None:
    with pytest.raises(ValueError, match="in the data loader") as caught:
        _inside()
    assert out_of_memory(caught.value, SETTINGS, 1)


GLOO = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 40000ms for recv operation"


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError("", {0: RuntimeError(f"Traceback\n{GLOO} to complete"), 1: RuntimeError("closed by peer")}),
        WorkerGroupError("", {0: RuntimeError("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3")}),
        NCCLHangError("no progress", {}),
        WorkerGroupError("", {0: BroadcastCollectiveTimeoutError(40.0, [1], 40.0)}),
    ],
    ids=["gloo", "nccl", "ras", "ray"],
)
def test_a_hang_names_its_setting(error: Exception) -> None:
    assert reason_of(error).startswith("a worker waited for the others longer than collective_timeout_s (")
    assert len(reason_of(error)) < 350


def test_a_process_that_died_names_what_may_have_ended_it() -> None:
    said = reason_of(WorkerGroupError("", {0: RuntimeError("Connection closed by peer"), 1: ActorDiedError()}))
    assert said.startswith("a worker's process died, more than max_failures times: ")
    assert "collective_timeout_s" in said
    assert "pack_tokens" in said


@pytest.mark.parametrize("min_workers", [None, 1])
def test_ray_train_gets_the_limit_and_the_range(
    min_workers: int | None, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1")
    settings = SETTINGS.model_copy(update={"min_workers": min_workers, "checkpoint_every_s": 300.0})
    loader = DataLoader(_corpus(tiny_base, tmp_path), Split(), 256, 2, 1)
    task, output = PolicyTask(tiny_base, SCHEMA, "steerlm"), Storage(str(tmp_path / "out"))
    trainer = _trainer(Assignment("test", task, settings, loader, output.uri), output)
    assert trainer.scaling_config.num_workers == ((1, 2) if min_workers else 2)
    assert trainer.scaling_config.elastic_resize_monitor_interval_s == 300
    assert trainer.backend_config.timeout_s == 40
    assert os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] == "40"


def test_the_limit_reaches_groups_that_others_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed clones the world's group with torch's own limit: half an hour for gloo, ten minutes for NCCL."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        clone = dist.new_group([0])
        limit_waiting(7)
        limits = {
            group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
            for group in (clone, dist.group.WORLD)
        }
        assert limits == {7.0}
        assert len(distributed_c10d._world.pg_map) == 2
    finally:
        dist.destroy_process_group()
    limit_waiting(7)


WAITER = """
import sys, time
import torch, torch.distributed as dist
from actors.training.collectives import limit_waiting
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
clone = dist.new_group([0, 1])
dist.barrier()
limit_waiting(2)
if rank == 1:
    time.sleep(600)
dist.all_reduce(torch.ones(1), group=clone)
"""


def test_a_real_wait_of_gloo_ends_with_words_that_are_known(tmp_path: Path) -> None:
    """Two processes; the group is a clone, as DeepSpeed's is, and the second never comes."""
    command = [sys.executable, "-c", WAITER]
    with subprocess.Popen([*command, "1", str(tmp_path / "meet")], cwd=ROOT) as absent:
        waits = subprocess.run([*command, "0", str(tmp_path / "meet")], cwd=ROOT, capture_output=True, text=True)
        absent.kill()
    assert waits.returncode == 1
    said = waits.stderr.strip().splitlines()[-1]
    assert "Timed out waiting 2000ms" in said
    assert "collective_timeout_s" in reason_of(WorkerGroupError("", {0: RuntimeError(said)}))


def test_a_worker_notes_that_memory_ran_out_and_does_not_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A training whose seventh step asks for more than there is."""

        def __init__(self, _: object):
            self.state = SimpleNamespace(step=6)

        def run(self) -> None:
            _allocate()

    monkeypatch.setattr(worker, "Training", Full)
    assignment = cast("Assignment", SimpleNamespace(output_uri=str(tmp_path), settings=SETTINGS))
    with pytest.raises(UserError, match=r"the node's memory ran out in step 7 .*pack_tokens below 256"):
        worker.train(assignment)
    assert (tmp_path / worker.USER_ERROR).read_text().startswith("the node's memory ran out in step 7 (")
    monkeypatch.setattr(worker, "Training", None)
    worker.train(assignment)
