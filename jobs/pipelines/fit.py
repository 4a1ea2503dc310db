"""From examples to a trained model, with Ray Train. Shared by every stage that trains."""

import contextlib
import importlib.util
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from actors.kernels.devices import process_group_backend
from actors.modeling.model_folder import new_format, text_folder
from actors.modeling.train_task import TrainTask
from actors.training.checkpoint import complete_steps
from actors.training.examples import ExampleSpec
from actors.training.kept_checkpoints import CHECKPOINTS
from actors.training.preemption import STOP
from actors.training.settings import LearnerSettings, Tracking
from actors.training.trainer import Assignment
from actors.training.worker import USER_ERROR, train_worker, worker_config
from cluster.elastic_workers import LabeledElasticPolicy
from cluster.process_group import OwnAddressConfig
from data.examples import Split
from data.label_use import LabelProbe
from data.loader import Corpus, DataLoader
from data.printable import printable
from data.run_layout import TRAINING, read_record
from data.stage_metrics import TrainingMetrics
from data.storage import Storage
from data.template import Unrenderable
from jobs.pipelines.failure import reason_of
from jobs.runner.stage import Run, StageError, log
from jobs.runner.start_models import base_uri

RESIZE_EVERY_S = 600.0
"""How often an elastic training without checkpoints by the clock looks for more workers."""
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_TIMEOUT_S, ELASTIC_START_TIMEOUT_S = "600", "120"
"""Workers on a busy node, or on one that reads its libraries for the first time, need longer than the minute that Ray
Train gives them. An elastic training counts again after it: a lost node may have been counted as there."""
GIVEN_START_TIMEOUT_S = os.environ.get(START_TIMEOUT)
"""What the person who started the command set stays, for every training."""


def example_spec(run: Run, learner: LearnerSettings, base: str | None = None) -> ExampleSpec:
    """`base`: the model whose tokenizer is used; None = the one all start from.

    Raises StageError if the model's tokenizer and chat template cannot render a conversation.
    """
    spec = ExampleSpec(base or base_uri(run), run.schema, run.preset.template, learner.max_tokens)
    try:
        new_format(text_folder(spec.base), spec.schema, spec.template)
    except Unrenderable as error:
        raise StageError(f"base.model {printable(spec.base, 120)}: {error}") from None
    return spec


def fit(
    what: str,
    task: TrainTask,
    settings: LearnerSettings,
    examples: Corpus,
    output: Storage,
    split: Split | None = None,
    weights: Mapping[str, float] | None = None,
    tracking: Tracking = "none",
    probes: Sequence[LabelProbe] = (),
    features: Storage | None = None,
) -> TrainingMetrics:
    """Train `task` on `examples`; the model goes to `output`/model. Returns the metrics, with the loss curve.

    `weights`: source -> how often an epoch has each of its examples. `features`: where those of a frozen backbone are
    kept, for a fit without epochs. What an earlier run left in `output` is kept: a
    finished training is not repeated, and a checkpoint is resumed. Raises StageError with the worker's own message if
    training fails, or after SIGTERM or Ctrl-C.
    """
    finished = output / TRAINING
    if finished.exists():
        log(f"{what}: trained before")
        return read_record(finished, TrainingMetrics)
    if tracking != "none" and importlib.util.find_spec(tracking) is None:
        raise StageError(
            f"tracking is {tracking}, which is not installed; "
            f"pip install {tracking} on every node, or set tracking to none"
        )
    few = f"{settings.min_workers} to " if settings.min_workers else ""
    how = f"DeepSpeed ZeRO stage {settings.zero_stage}" if settings.epochs else "a frozen backbone"
    log(f"{what}: Ray Train, {few}{settings.num_workers} workers, {how}, precision {settings.precision}")
    sizes = (settings.pack_tokens, settings.packs_per_step, settings.epochs, settings.seed)
    loader = DataLoader(examples, split or Split(), *sizes, weights or {})
    assignment = Assignment(what, task, settings, loader, output.uri, tracking, tuple(probes))
    if features:
        assignment = replace(assignment, features_uri=features.uri)
    _run(what, _trainer(assignment, output), output)
    return read_record(finished, TrainingMetrics)


def _run(what: str, trainer: TorchTrainer, output: Storage) -> None:
    """Raises StageError unless the training ends by itself, without a user error: whatever happened, in a sentence."""
    for mark in (USER_ERROR, STOP):
        (output / mark).remove()
    failure: Exception | None = None
    try:
        with _stopping(output / STOP):
            trainer.fit()
    except (TrainingFailedError, RayError) as error:
        failure = error
    if (output / USER_ERROR).exists():
        raise StageError(f"{what} failed: {(output / USER_ERROR).read_text()}") from failure
    if failure:
        raise StageError(f"{what} failed: {reason_of(failure)}; {_goes_on(output)}") from failure
    if (output / STOP).exists():
        if complete_steps(output / CHECKPOINTS):
            raise StageError(f"{what} was stopped; its checkpoint is kept, and the same command goes on from there")
        raise StageError(f"{what} was stopped before it had a checkpoint; the same command starts it from step 0")


def _goes_on(output: Storage) -> str:
    if steps := complete_steps(output / CHECKPOINTS):
        return f"the same command goes on from its checkpoint at step {steps[-1]}"
    return "it has no checkpoint yet, and the same command starts it again"


def _trainer(assignment: Assignment, output: Storage) -> TorchTrainer:
    settings = assignment.settings
    # Ray Train's own barriers, one of them around each question for preemptions, would wait for ever.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = f"{settings.collective_timeout_s:g}"
    ours = ELASTIC_START_TIMEOUT_S if settings.min_workers else START_TIMEOUT_S
    os.environ[START_TIMEOUT] = GIVEN_START_TIMEOUT_S or ours
    return _Trainer(
        train_worker,
        train_loop_config=worker_config(assignment),
        torch_config=OwnAddressConfig(
            backend=process_group_backend(settings.use_gpu),
            timeout_s=settings.collective_timeout_s,
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(settings.min_workers, settings.num_workers) if settings.min_workers else settings.num_workers,
            # Workers that come back are taken by a restart, which repeats the steps since the last checkpoint.
            elastic_resize_monitor_interval_s=settings.checkpoint_every_s or RESIZE_EVERY_S,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.use_gpu else {}),
            label_selector=settings.labels or None,
        ),
        run_config=ray.train.RunConfig(
            name=re.sub(r"[^A-Za-z0-9.]+", "-", assignment.what),  # as the Train tab of the dashboard shows it
            storage_path=output.path,
            storage_filesystem=output.arrow_fs,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
        ),
    )


@contextlib.contextmanager
def _stopping(mark: Storage) -> Iterator[None]:
    """In the block, SIGTERM (`ray job stop`, a pod's end) or Ctrl-C leaves the mark; workers keep a checkpoint and end.

    A second Ctrl-C ends the command at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave_mark(number: int, _: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log(f"{signal.Signals(number).name}: keeping a checkpoint before the end; Ctrl-C now ends without one")
        mark.write_bytes(b"")

    before = {number: signal.signal(number, leave_mark) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Trainer(TorchTrainer):
    """Ray's, but for three things.

    Ctrl-C: Ray's own handler would end the workers before they have written a checkpoint. Ray starts an actor that
    hands out the trainer's datasets, though there are none: a process more in the start of every training. And it
    counts the workers of an elastic training on nodes that these may not use.
    """

    def _create_default_callbacks(self) -> list[Any]:
        assert not self.datasets, "workers read tokenized examples, not Ray's datasets"
        return [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = LabeledElasticPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leaves the handler of `_stopping` in place."""
