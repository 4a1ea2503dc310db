"""From rows to a trained model: tokenise with Ray Data, then fit with Ray Train. Shared by every stage that trains."""

import os
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from actors.examples import ExampleSpec
from actors.learner import Assignment, Task, train_worker
from actors.learner_settings import LearnerSettings
from data.storage import Storage
from jobs.pipelines import map_rows
from jobs.preset import WorkerPool
from jobs.stage import Figures, Run, StageError, say

TOKENISERS = WorkerPool(num_actors=2, min_actors=1, batch_rows=512)
"""Tokenising needs CPUs only, and few."""


def base_uri(run: Run) -> str:
    """The model that predictor and policy start from: the preset's, or the one that stage `base` made."""
    model = run.preset.base.model
    if model is None:
        return (run.folder("base") / "model").uri
    return _absolute(model)


def _absolute(model: str) -> str:
    # Workers run in folders of their own: a relative path must become absolute here; a hub name is none.
    return os.path.abspath(model) if os.path.isdir(model) else model


def backbone_uri(run: Run) -> str:
    """The model that the predictor starts from: its own, or the one all start from."""
    backbone = run.preset.predictor.backbone
    return _absolute(backbone) if backbone else base_uri(run)


def example_spec(run: Run, learner: LearnerSettings, base: str | None = None) -> ExampleSpec:
    """`base`: the model whose tokenizer is used; None = the one all start from."""
    return ExampleSpec(base or base_uri(run), run.schema, run.preset.template, learner.max_tokens)


def make_examples(what: str, sources: list[Storage], maker: type[Any], arguments: dict[str, Any], target: Storage) -> Figures:
    """Tokenise all rows of `sources` into `target`."""
    return map_rows(f"{what}: tokenise", sources, maker, arguments, TOKENISERS, target)


def fit(
    what: str, task: Task, settings: LearnerSettings, examples: Storage, output: Storage, buckets: int = 0, held_out: int = 0, validation_buckets: int = 0
) -> Figures:
    """Train `task` on `examples`; the model goes to `output`/model. Returns the figures of the training.

    Which groups are trained on, validated on and left unseen: `data.feed.Feed.split`. Raises StageError with the worker's own sentence if training fails.
    """
    say(f"{what}: Ray Train, {settings.num_workers} workers, DeepSpeed ZeRO stage {settings.zero_stage}, {settings.precision}")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"assignment": Assignment(task, settings, examples.uri, output.uri, buckets, held_out, validation_buckets)},
        # Weights and gradients go over NCCL, what the learner adds up on the host (losses, moments) over gloo; Ray's own default on GPUs has no gloo.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if settings.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(name="ray_train", storage_path=output.path, storage_filesystem=output.arrow_fs),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        raise StageError(f"{what} failed: {'; '.join(sorted({str(c).strip().splitlines()[-1] for c in causes})) or error}") from error
    figures: Figures = (output / "training.json").read_json()
    return figures


def buckets_for(share: float) -> int:
    """Into how many buckets to split the groups, so that one of them is `share` of all; 0 = hold out nothing."""
    return round(1 / share) if share else 0
