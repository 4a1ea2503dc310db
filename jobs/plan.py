"""`--plan`: what a run will do and need, before anything starts. Reads settings only; knows no Ray and no data."""

from collections.abc import Iterator, Sequence

from actors.learner_settings import LearnerSettings
from jobs.preset import BaseSettings, Preset, WorkerPool

GIB = 2**30
# Bytes per parameter under fp32 weights: weights 4, gradients 4, AdamW's two moments 8 (ZeRO, arXiv 1910.02054, section 3).
WEIGHTS, GRADIENTS, MOMENTS = 4, 4, 8


def model_state_bytes(num_parameters: int, zero_stage: int, num_workers: int) -> float:
    """Weights, gradients and optimizer states per worker; stage 1 shards the last, 2 the last two, 3 all."""
    parts = (MOMENTS, GRADIENTS, WEIGHTS)
    sharded = sum(parts[:zero_stage])
    return num_parameters * (sharded / num_workers + sum(parts) - sharded)


def num_parameters(base: BaseSettings) -> int | None:
    """The size of the base model, None if only the hub knows."""
    return base.num_parameters if base.model else base.small.num_parameters


def plan_lines(preset: Preset, stage_names: Sequence[str]) -> Iterator[str]:
    """One line a stage: workers, resources, memory per worker."""
    parameters = num_parameters(preset.base)
    size = f"{parameters:,} parameters" if parameters else "size unknown (set base.num_parameters)"
    yield f"run {preset.run}: {preset.storage}/{preset.run}, attributes {', '.join(preset.schema_.names)}, base {preset.base.model or 'made here'}, {size}"
    for name in stage_names:
        yield f"  {name:22} {_needs(preset, name, parameters)}"


def print_plan(preset: Preset, stage_names: Sequence[str]) -> None:
    print("\n".join(plan_lines(preset, stage_names)), flush=True)


def _needs(preset: Preset, name: str, parameters: int | None) -> str:
    learners = {"base": preset.base.pretrain, "predictor": preset.predictor.learner, "policy": preset.policy.learner}
    kind = name.split("/")[-1]
    if kind == "policy" and "/" in name:
        return _training(preset.bootstrap.learner, parameters)
    if preset.predictor.backbone and kind in ("predictor", "annotated", "rated"):
        parameters = None  # the base model's size says nothing about another backbone
    if learner := learners.get(kind):
        return _training(learner, parameters) + (
            f"; {preset.predictor.folds} times more for the folds" if kind == "predictor" and preset.predictor.folds else ""
        )
    if kind in ("annotated", "rated"):
        return _pool(preset.annotate.pool, parameters)
    if kind in ("samples", "report"):
        return _pool(preset.sampling.pool, parameters)
    return "the driver alone"


def _training(learner: LearnerSettings, parameters: int | None) -> str:
    gpus = ", 1 GPU" if learner.use_gpu else ""
    memory = f"{model_state_bytes(parameters, learner.zero_stage, learner.num_workers) / GIB:,.2f} GiB of model states each" if parameters else "memory unknown"
    return (
        f"{learner.num_workers} Ray Train workers x {learner.cpus_per_worker:g} CPU{gpus}; ZeRO {learner.zero_stage}, {learner.precision}; "
        f"{memory}, plus activations of {learner.row_tokens:,} tokens; {learner.rows_per_step * learner.row_tokens:,} tokens per step at most"
    )


def _pool(pool: WorkerPool, parameters: int | None) -> str:
    width = 2 if pool.dtype == "bfloat16" else 4
    memory = f"{parameters * width / GIB:,.2f} GiB of weights each" if parameters else "memory unknown"
    gpus = f", {pool.gpus_per_actor:g} GPU" if pool.gpus_per_actor else ""
    return f"{pool.num_actors} Ray Data actors x {pool.cpus_per_actor:g} CPU{gpus}; {pool.dtype}, {memory}"
