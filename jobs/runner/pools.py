"""The pools of Ray Data actors in a plan: what each actor holds, and the refusal of what cannot fit. Knows no Ray."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from actors.generation.planned_engine import PlannedEngine
from actors.generation.settings import sampling_place
from actors.modeling.model_memory import device_bytes
from actors.modeling.model_shape import ModelShape
from actors.scoring.planned_forward import PlannedForward
from jobs.runner.preset import Preset
from jobs.runner.settings import WorkerPool
from jobs.runner.shapes import Shapes, rater_shapes


@dataclass(frozen=True)
class Pools:
    """Of one run."""

    preset: Preset
    shapes: Shapes

    def predictor(self) -> str:
        """The line of a stage where the predictor alone rates."""
        return _read_line(self.preset.annotate.pool, self._predicting(), self.shapes.predictor)

    def annotator(self) -> str:
        """The line of a stage where the predictor and all other raters rate."""
        return _read_line(self.preset.annotate.pool, self._annotating(), self.shapes.predictor)

    def reader(self) -> str:
        """The line of a stage where a policy reads answers instead of writing them."""
        return _read_line(self.preset.sampling.pool, self._reading(), self.shapes.base)

    def sampler(self) -> str:
        """The line of a stage that writes answers."""
        pool, shape = self.preset.sampling.pool, self.shapes.base
        return f"{_actors(pool)}; {self._engine(shape).line(shape)}" if shape else f"{_actors(pool)}, memory unknown"

    def problems(self) -> Iterator[str]:
        """Why a pool cannot hold its model, and the settings that help."""
        preset, shapes = self.preset, self.shapes
        if shapes.base and (problem := self._engine(shapes.base).problem(shapes.base)):
            yield problem
        if shapes.predictor and (problem := self._annotating().problem(shapes.predictor)):
            yield problem
        reads = preset.bootstrap.rounds and preset.bootstrap.method == "steerlm2"
        if reads and shapes.base and (problem := self._reading().problem(shapes.base)):
            yield problem

    def _annotating(self) -> PlannedForward:
        """An actor holds the predictor and all others, and asks them one after another."""
        return replace(self._predicting(), others=rater_shapes(self.preset))

    def _predicting(self) -> PlannedForward:
        annotate = self.preset.annotate
        return _reading("annotate.pool", annotate.pool, "annotate.pool", annotate.pack_tokens, "annotate.pack_tokens")

    def _reading(self) -> PlannedForward:
        tokens, setting = self.preset.bootstrap.learner.pack_tokens, "bootstrap.learner.pack_tokens"
        what = "sampling.pool, where SteerLM 2.0 reads answers on one GPU,"
        return _reading(what, self.preset.sampling.pool, "sampling.pool", tokens, setting)

    def _engine(self, shape: ModelShape) -> PlannedEngine:
        sampling, pool = self.preset.sampling, self.preset.sampling.pool
        settings = sampling.engine_for(sampling.guidance)
        asked = self.preset.policy.learner.max_tokens + sampling.max_tokens
        tokens = min(n for n in (asked, settings.max_model_len, shape.context) if n)
        place = sampling_place(pool.gpus_per_actor)
        return PlannedEngine(settings, place, pool.dtype, pool.gpus_per_actor, tokens, _device_bytes(pool))


def _device_bytes(pool: WorkerPool) -> int | None:
    """Of an actor, in the pool's smallest size; None = unknown here."""
    return device_bytes(pool.memory_gib, bool(pool.gpus_per_actor), pool.min_actors or pool.num_actors)


def _reading(what: str, pool: WorkerPool, setting: str, tokens: int, tokens_setting: str) -> PlannedForward:
    dtype = f"{setting}.dtype"
    return PlannedForward(what, pool.dtype, dtype, tokens, tokens_setting, pool.gpus_per_actor, _device_bytes(pool))


def _read_line(pool: WorkerPool, planned: PlannedForward, shape: ModelShape | None) -> str:
    return f"{_actors(pool)}, {planned.line(shape)}"


def _actors(pool: WorkerPool) -> str:
    gpus = f", {pool.gpus_per_actor:g} GPU" if pool.gpus_per_actor else ""
    return f"{pool.num_actors} Ray Data actors x {pool.cpus_per_actor:g} CPU{gpus}; {pool.dtype}"
