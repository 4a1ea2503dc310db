"""How a training ends, for the person who started it: one sentence, whatever happened. No Ray: a stub trains."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import ray.cloudpickle
from fsspec.implementations.memory import MemoryFileSystem
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from actors.training.checkpoint import COMPLETE
from actors.training.preemption import STOP
from actors.training.settings import LearnerSettings
from actors.training.trainer import Assignment
from actors.training.worker import USER_ERROR
from cluster.elastic_workers import LabeledElasticPolicy
from cluster.settings.load import load
from data.storage import Storage
from jobs.pipelines.failure import reason_of
from jobs.pipelines.fit import (
    ELASTIC_START_TIMEOUT_S,
    START_TIMEOUT,
    START_TIMEOUT_S,
    _run,
    _trainer,
    example_spec,
)
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, StageError

DEMO = str(Path(__file__).parent.parent / "jobs" / "presets" / "demo.yaml")
GUARD = (
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.1) was 15.2GB / 16GB, "
    "which exceeds the memory usage threshold of 0.95."
)


class _Trainer:
    """What Ray Train does, here any function."""

    def __init__(self, fit: Callable[[], object]):
        self.fit = fit


def _trained(fit: Callable[[], object], output: Path) -> None:
    _run("policy", cast("TorchTrainer", _Trainer(fit)), Storage(str(output)))


def _raises(error: Exception) -> Callable[[], object]:
    def fit() -> None:
        raise error

    return fit


def _checkpoint(output: Path, step: int) -> None:
    (Storage(str(output)) / "checkpoints" / f"{step:09d}" / COMPLETE).write_json({})


MEMORY = [
    WorkerGroupError("", {0: OutOfMemoryError(GUARD)}),
    WorkerGroupError("", {0: RuntimeError("Connection closed by peer"), 1: RuntimeError(GUARD)}),
    ControllerError(OutOfMemoryError(GUARD)),
    OutOfMemoryError(GUARD),
]


@pytest.mark.case("A7: the memory guard killed the workers")
@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_what_the_memory_guard_ended_says_so_and_what_to_change(error: Exception, tmp_path: Path) -> None:
    for checkpoint, goes_on in (
        (False, "it has no checkpoint yet, and the same command starts it again"),
        (True, "the same command goes on from its checkpoint at step 40"),
    ):
        if checkpoint:
            _checkpoint(tmp_path, 40)
        with pytest.raises(StageError) as caught:
            _trained(_raises(error), tmp_path)
        assert str(caught.value) == (
            "policy failed: Ray's memory guard killed a worker: its node was almost out of memory; lower pack_tokens "
            f"or num_workers of the learner, or ray.object_store_mb, or use nodes with more memory; {goes_on}"
        )
        assert len(str(caught.value)) <= 400


@pytest.mark.case("A7: the driver has the last word")
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WorkerGroupError("", {0: RuntimeError("a\nlast line"), 1: RuntimeError("a\nlast line")}), "last line"),
        (WorkerGroupError("", {0: RuntimeError("x" * 5000)}), "x" * 250 + "..."),
        (WorkerGroupError("", {0: RuntimeError()}), "RuntimeError"),
        (ControllerError(ValueError("\x1b[31mred")), r"\x1b[31mred"),
        (ActorDiedError(), "The actor died unexpectedly before finishing this task."),
        (RayTaskError("f", "Traceback\nValueError: deep", ValueError("deep")), "ValueError: deep"),
    ],
    ids=["equal", "long", "empty", "controller", "actor", "task"],
)
def test_any_other_end_is_one_line(error: Exception, says: str, tmp_path: Path) -> None:
    assert reason_of(error) == says
    with pytest.raises(StageError) as caught:
        _trained(_raises(error), tmp_path)
    assert str(caught.value).startswith("policy failed: ")
    assert len(str(caught.value)) <= 400


@pytest.mark.case("A7: a user error in a worker")
@pytest.mark.parametrize("error", [None, WorkerGroupError("", {0: RuntimeError("connection closed")})])
def test_the_workers_own_sentence_explains_most(error: Exception | None, tmp_path: Path) -> None:
    def fit() -> None:
        (tmp_path / USER_ERROR).write_text("the loss is nan")
        if error:
            raise error

    with pytest.raises(StageError, match=r"^policy failed: the loss is nan$"):
        _trained(fit, tmp_path)
    _trained(lambda: None, tmp_path)


@pytest.mark.case("A7: Ctrl-C while it trains")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_and_sigterm_ask_for_a_checkpoint_before_the_end(number: signal.Signals, tmp_path: Path) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def fit() -> None:
        os.kill(os.getpid(), number)
        while not (tmp_path / STOP).exists():
            time.sleep(0.01)
        _checkpoint(tmp_path, 7)

    match = "^policy was stopped; its checkpoint is kept, and the same command goes on from there$"
    with pytest.raises(StageError, match=match):
        _trained(fit, tmp_path)
    assert before == {n: signal.getsignal(n) for n in before}


@pytest.mark.case("A7: a stop whose checkpoint failed")
def test_a_stop_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"was stopped before it had a checkpoint; the same command starts it from"):
        _trained(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path)


@pytest.mark.case("A7: Ctrl-C twice")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def fit() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        _trained(fit, tmp_path)


def test_the_handler_that_rays_trainer_sets_is_the_one_we_leave_out() -> None:
    """If Ray renames it, its own handler ends the workers at Ctrl-C, without a checkpoint."""
    assert callable(TorchTrainer._register_sigint_handler)


def _trainer_of(learner: LearnerSettings, output: Path) -> TorchTrainer:
    return _trainer(cast("Assignment", SimpleNamespace(settings=learner, what="policy")), Storage(str(output)))


def test_a_training_starts_no_actor_for_the_datasets_that_it_does_not_have(tmp_path: Path) -> None:
    trainer = _trainer_of(LearnerSettings(num_workers=2, packs_per_step=2), tmp_path)
    names = {type(callback).__name__ for callback in trainer._create_default_callbacks()}
    assert "DatasetsCallback" not in names
    assert "BackendSetupCallback" in names


def test_rays_controller_gets_nothing_to_unpickle_that_imports_transformers(tmp_path: Path) -> None:
    learner = LearnerSettings(num_workers=2, packs_per_step=2, learning_rate=3e-4)
    config = _trainer_of(learner, tmp_path).train_loop_config
    assert {type(value) for value in config.values()} == {bytes}
    assert ray.cloudpickle.loads(config["assignment"]).settings == learner


def test_an_elastic_training_counts_workers_by_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Ray renames the method, its own policy waits for the workers of lost nodes."""
    found: list[object] = []
    monkeypatch.setattr(
        TorchTrainer, "_initialize_and_run_controller", lambda self, scaling_policy: found.append(scaling_policy)
    )
    for fewest in (1, None):
        learner = LearnerSettings(num_workers=2, min_workers=fewest, packs_per_step=2, collective_timeout_s=60)
        _trainer_of(learner, tmp_path)._initialize_and_run_controller(scaling_policy="Ray's own")
        assert os.environ[START_TIMEOUT] == (ELASTIC_START_TIMEOUT_S if fewest else START_TIMEOUT_S)
    assert isinstance(found[0], LabeledElasticPolicy)
    assert found[1] == "Ray's own"


def _with_chat_template(base: str, folder: Path, template: str) -> str:
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return str(folder)


REFUSING = {
    "raises": "{{ raise_exception('This model is no chat model') }}",
    "syntax": "{% for m in messages %}{{ m.content }}",
    "missing filter": "{{ messages | nothing }}",
}


@pytest.mark.case("A7: a chat template that refuses")
@pytest.mark.parametrize("template", REFUSING.values(), ids=REFUSING)
def test_a_chat_template_that_refuses_is_one_sentence_before_anything_starts(
    template: str, tiny_base: str, tmp_path: Path
) -> None:
    base = _with_chat_template(tiny_base, tmp_path / "m", template)
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}", "template=chat"]))
    with pytest.raises(ValueError, match=r"template") as caught:
        example_spec(run, LearnerSettings(), base)
    assert base in str(caught.value)
    assert len(str(caught.value)) <= 400


@pytest.mark.case("A7: a base model on remote storage")
def test_the_template_of_a_model_on_remote_storage_is_tried_without_its_weights(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"memory://{tmp_path.name}/m"
    Storage(base).upload(_with_chat_template(tiny_base, tmp_path / "m", REFUSING["raises"]))
    run = Run(load(Preset, DEMO, [f"storage={tmp_path}", "template=chat"]))
    fetched: list[str] = []
    get_file = MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem, "get_file", lambda fs, path, *to, **k: (fetched.append(path), get_file(fs, path, *to, **k))
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"template") as caught:
        example_spec(run, LearnerSettings(), base)
    assert base in str(caught.value)
    assert example_spec(run.__class__(run.preset.model_copy(update={"template": "steerlm"})), LearnerSettings(), base)
    assert any(path.endswith("/config.json") for path in fetched)
    assert not [path for path in fetched if path.endswith(".safetensors")]
