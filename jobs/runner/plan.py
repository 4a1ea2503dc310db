"""`--plan`: what a run will do and need, before anything starts, and the refusal of what cannot fit. Knows no Ray."""

from collections.abc import Iterator, Sequence

from actors.training.memory import (
    GIB,
    Shape,
    TrainingMemory,
    device_bytes,
    shape_of,
    too_large,
    torch_sees_a_gpu,
    training_memory,
)
from actors.training.settings import LearnerSettings
from jobs.runner.estimate import estimate
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.preset import Preset
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import Run, StageError


def plan_lines(run: Run, stage_names: Sequence[str]) -> Iterator[str]:
    """One line a stage: workers, resources, memory per worker; then, once rows exist, each training's size and time."""
    preset = run.preset
    shape = shape_of(preset.base.model, preset.base.num_parameters, preset.base.small)
    size = f"{shape.num_parameters:,} parameters" if shape else "size unknown (set base.num_parameters)"
    base = f"base {preset.base.model or 'made here'}, {size}"
    yield f"run {preset.run}: {preset.storage}/{preset.run}, attributes {', '.join(preset.schema_.names)}, {base}"
    for name in stage_names:
        yield f"  {name:22} {_needs(preset, name, shape)}"
    for path, learner in learners(preset).items():
        guess = estimate(run.folder("rows") / "rows", learner, shape, has_device=learner.use_gpu == torch_sees_a_gpu())
        yield f"  {path:22} {guess or 'tokens, steps and time: known once jobs.prepare has read the rows'}"


def print_plan(run: Run, stage_names: Sequence[str]) -> None:
    """Raises UserError if the run cannot start, and StageError, after the plan, if a training cannot fit."""
    refuse_what_is_not_there(run.preset)
    print("\n".join(plan_lines(run, stage_names)), flush=True)
    refuse_what_cannot_fit(run.preset)


def refuse_what_cannot_fit(preset: Preset) -> None:
    """Raise StageError, with the settings to change, if a worker needs more memory than its device has.

    Raises UserError as `refuse_what_is_not_there` does.
    """
    refuse_what_is_not_there(preset)
    shape = shape_of(preset.base.model, preset.base.num_parameters, preset.base.small)
    for path, learner in {path: found.fewest for path, found in learners(preset).items()}.items():
        own = shape if not (preset.predictor.backbone and path.startswith("predictor")) else None
        limit = device_bytes(learner)
        if own and limit and (sentence := too_large(path, learner, training_memory(own, learner), limit)):
            raise StageError(sentence)


def learners(preset: Preset) -> dict[str, LearnerSettings]:
    """Every training of the run, by the path of its settings."""
    found = {
        "base.pretrain": preset.base.pretrain,
        "predictor.warmup": preset.predictor.warmup,
        "predictor.learner": preset.predictor.learner,
        "policy.learner": preset.policy.learner,
        "bootstrap.learner": preset.bootstrap.learner if preset.bootstrap.rounds else None,
    }
    return {path: learner for path, learner in found.items() if learner}


def _needs(preset: Preset, name: str, shape: Shape | None) -> str:
    stages = {"base": preset.base.pretrain, "predictor": preset.predictor.learner, "policy": preset.policy.learner}
    kind = name.split("/")[-1]
    if kind == "policy" and ("bootstrap-" in name or "/longer/" in name):
        return _training(preset.bootstrap.learner, shape)
    if preset.predictor.backbone and kind in ("predictor", "annotated", "rated"):
        shape = None  # the size of another backbone is unknown
    if learner := stages.get(kind):
        folds = preset.predictor.folds if kind == "predictor" else 0
        return _training(learner, shape) + (f"; {folds} times more for the folds" if folds else "")
    if kind in ("annotated", "rated"):
        return _pool(preset.annotate.pool, shape)
    if kind in ("samples", "promotion", "report", "answers") and name != "ablation/report":
        return _pool(preset.sampling.pool, shape)
    return "the driver alone"


def _training(learner: LearnerSettings, shape: Shape | None) -> str:
    gpus = ", 1 GPU" if learner.use_gpu else ""
    memory = _memory(training_memory(shape, learner.fewest)) if shape else "memory unknown"
    few = f"{learner.min_workers} to " if learner.min_workers else ""
    offload = "" if learner.offload == "none" else f", {learner.offload} on the CPU"
    return (
        f"{few}{learner.num_workers} Ray Train workers x {learner.cpus_per_worker:g} CPU{gpus}; "
        f"ZeRO {learner.zero_stage}{offload}, {learner.precision}; {memory}; "
        f"{learner.packs_per_step * learner.pack_tokens:,} tokens per step at most, {learner.epochs} epochs"
    )


def _memory(memory: TrainingMemory) -> str:
    activations = "unknown" if memory.activations is None else _gib(memory.activations)
    return (
        f"GiB each: weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, "
        f"optimizer {_gib(memory.optimizer)}, activations {activations}, together {_gib(memory.total)}"
        + (f" (and {_gib(memory.host)} in the CPU's memory)" if memory.host else "")
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size > 10 * GIB else f"{size / GIB:.2g}"


def _pool(pool: WorkerPool, shape: Shape | None) -> str:
    width = 2 if pool.dtype == "bfloat16" else 4
    memory = f"{_gib(shape.num_parameters * width)} GiB of weights each" if shape else "memory unknown"
    gpus = f", {pool.gpus_per_actor:g} GPU" if pool.gpus_per_actor else ""
    return f"{pool.num_actors} Ray Data actors x {pool.cpus_per_actor:g} CPU{gpus}; {pool.dtype}, {memory}"
