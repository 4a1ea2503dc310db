"""`--plan`: what a run will do and need, before anything starts, and the refusal of what cannot fit. Knows no Ray."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actors.modeling.model_memory import in_gib, listed
from actors.modeling.model_shape import ModelShape
from actors.training.memory import TrainingMemory, learner_device_bytes, too_large, torch_sees_a_gpu, training_memory
from actors.training.settings import LearnerSettings
from data.lab import LAB
from jobs.runner.auto_fit import with_fits
from jobs.runner.estimate import estimate
from jobs.runner.inputs import refuse_what_is_not_there
from jobs.runner.pools import Pools
from jobs.runner.preset import Preset
from jobs.runner.shapes import Shapes
from jobs.runner.stage import Run, StageError
from jobs.runner.trainings import learners


def plan_lines(run: Run, stage_names: Sequence[str]) -> Iterator[str]:
    """One line a stage: workers, resources, memory per worker; then, once rows exist, each training's size and time."""
    preset, shapes = run.preset, Shapes.of(run.preset)
    base = f"base {preset.base.model or 'made here'}, {_size(shapes.base)}"
    yield f"run {preset.run}: {preset.storage}/{preset.run}, attributes {', '.join(preset.schema_.names)}, {base}"
    stages = _Stages(preset, shapes)
    for name in stage_names:
        yield f"  {name:22} {stages.needs(name)}"
    for path, learner in learners(preset).items():
        shape, _ = shapes.of_training(path, preset)
        has_device = torch_sees_a_gpu() if learner.use_gpu else True
        guess = estimate(run.folder("rows") / "rows", learner, shape, has_device)
        yield f"  {path:22} {guess or 'tokens, steps and time: known once jobs.prepare has read the rows'}"


def print_plan(run: Run, stage_names: Sequence[str]) -> None:
    """Raises UserError if the run cannot start, and StageError, after the plan, if a training cannot fit."""
    refuse_what_is_not_there(run.preset)
    preset, choices = with_fits(run.preset)
    lines = plan_lines(Run(preset), stage_names)
    print("\n".join([*lines, *(f"  {choice}" for choice in choices)]), flush=True)
    refuse_what_cannot_fit(preset)


def refuse_what_cannot_fit(preset: Preset) -> None:
    """Raise StageError, with the settings to change, if a worker or an actor needs more memory than its device has.

    Raises UserError as `refuse_what_is_not_there` does.
    """
    refuse_what_is_not_there(preset)
    shapes = Shapes.of(preset)
    for path, learner in {path: found.fewest for path, found in learners(preset).items()}.items():
        shape, has_logits = shapes.of_training(path, preset)
        limit = learner_device_bytes(learner)
        if shape is None or not limit:
            continue
        if sentence := too_large(path, learner, training_memory(shape, learner, has_logits), limit):
            raise StageError(sentence)
    for sentence in Pools(preset, shapes).problems():
        raise StageError(sentence)


@dataclass(frozen=True)
class _Stages:
    """What each stage needs."""

    preset: Preset
    shapes: Shapes

    def needs(self, name: str) -> str:
        preset, kind = self.preset, name.split("/")[-1]
        pools = Pools(preset, self.shapes)
        if kind in ("policy", "unconditional"):
            return self._training(
                "bootstrap.learner" if "bootstrap-" in name or "/longer/" in name else "policy.learner"
            )
        if kind == "selected" and (preset.bootstrap.method == "steerlm2" or "/steerlm2/" in name):
            return f"{pools.reader()}; log-probabilities of the answers, under two policies"
        if kind == "base" and preset.base.pretrain:
            return self._training("base.pretrain")
        if kind == "predictor":
            again = (
                "fits for the folds, which share their features" if _is_frozen(preset) else "times more for the folds"
            )
            folds = f"; {preset.predictor.folds} {again}" if preset.predictor.folds else ""
            return self._training("predictor.learner") + folds
        if kind == "rewardbench":
            return pools.predictor()
        if kind in ("annotated", "rated"):
            return pools.annotator()
        if kind in ("samples", "answers") or self._only_asks(name):
            return pools.sampler()
        if kind in ("promotion", "report") and name != "ablation/report":
            return pools.sampler_and_annotator(is_report=name == "report")
        return "the driver alone"

    def _only_asks(self, name: str) -> bool:
        """The report of an ablation's arm: in the synthetic world its answers are measured by the truth alone."""
        is_arm = name.startswith("ablation/") and name.endswith("/report") and name != "ablation/report"
        return is_arm and any(source.format == LAB for source in self.preset.rows.sources)

    def _training(self, path: str) -> str:
        found = {**learners(self.preset), "bootstrap.learner": self.preset.bootstrap.learner}
        shape, has_logits = self.shapes.of_training(path, self.preset)
        return _training(found[path], shape, has_logits)


def _is_frozen(preset: Preset) -> bool:
    """Are the predictor's heads fitted without training anything?"""
    return preset.predictor.heads is not None and not preset.predictor.learner.epochs


def _size(shape: ModelShape | None) -> str:
    if shape is None:
        return "size unknown (set base.num_parameters)"
    known = f", {shape.layers} layers of width {shape.width:,}, vocabulary {shape.vocabulary:,}" if shape.layers else ""
    return f"{shape.num_parameters:,} parameters{known}"


def _training(learner: LearnerSettings, shape: ModelShape | None, has_logits: bool) -> str:
    gpus = ", 1 GPU" if learner.use_gpu else ""
    memory = _memory(training_memory(shape, learner.fewest, has_logits)) if shape else "memory unknown"
    few = f"{learner.min_workers} to " if learner.min_workers else ""
    offload = "" if learner.offload == "none" else f", {learner.offload} on the CPU"
    again = ", activation checkpointing" if learner.activation_checkpointing else ""
    workers = f"{few}{learner.num_workers} Ray Train workers x {learner.cpus_per_worker:g} CPU{gpus}"
    if not learner.epochs:
        return f"{workers}; a frozen backbone, {learner.precision}; {memory}; packs of {learner.pack_tokens:,} tokens"
    return (
        f"{workers}; ZeRO {learner.zero_stage}{offload}{again}, {learner.precision}; {memory}; "
        f"{learner.packs_per_step * learner.pack_tokens:,} tokens per step at most, {learner.epochs} epochs"
    )


def _memory(memory: TrainingMemory) -> str:
    apart = {name: size for name, size in memory.pack.items() if size and name not in memory.parts}
    pack = f", before it a pack's {listed(apart)}" if apart else ""
    unknown = pack if memory.knows_activations else ", activations unknown"
    host = f" (and {in_gib(memory.host)} in the CPU's memory)" if memory.host else ""
    return f"GiB each: {listed(memory.parts)}, together {in_gib(memory.total)} {memory.moment}{unknown}{host}"
