"""The pools of Ray Data actors in a plan: what each actor holds, and the refusal of what cannot fit. Knows no Ray."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from actors.generation.planned_engine import PlannedEngine
from actors.generation.settings import sampling_place
from actors.modeling.model_memory import device_bytes, listed
from actors.modeling.model_part import SETTING
from actors.modeling.model_shape import ModelShape
from actors.scoring.planned_forward import PlannedForward
from jobs.runner.needs import one_pool
from jobs.runner.preset import Preset
from jobs.runner.settings import WorkerPool
from jobs.runner.shapes import Shapes, cannot_split, rater_shapes


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
        return self._write_line()

    def sampler_and_annotator(self, is_report: bool) -> str:
        """The line of a stage that writes answers and rates them, in one pool or in one after the other.

        `is_report`: does it answer with each of evaluate.guidance, too?
        """
        if one_pool(self.preset):
            predictor = "" if self.shapes.predictor else ", predictor unknown"
            line = f"{self._write_line(self._rated())}{predictor}{self._annotating().unknown}; the same actors rate"
        else:
            line = f"{self.sampler()}; then {self.annotator()}"
        shape = self.shapes.base
        table = self._table_engine(shape) if shape and is_report else None
        return f"{line}; for evaluate.guidance {table.line(shape)}" if shape and table else line

    def problems(self) -> Iterator[str]:
        """Why a pool cannot hold its model, and the settings that help."""
        preset, shapes = self.preset, self.shapes
        if base := shapes.base:
            yield from (problem for engine in self._engines(base) if (problem := engine.problem(base)))
        if shapes.predictor and (problem := self._annotating().problem(shapes.predictor)):
            yield problem
        reads = preset.bootstrap.rounds and preset.bootstrap.method == "steerlm2"
        if reads and shapes.base and (problem := self._reading().problem(shapes.base)):
            yield problem

    def _annotating(self) -> PlannedForward:
        """An actor holds the predictor and all others, and asks them one after another."""
        return replace(self._predicting(), others=rater_shapes(self.preset))

    def _predicting(self) -> PlannedForward:
        annotate, setting = self.preset.annotate, "annotate.pool"
        whole = _reading(setting, annotate.pool, setting, annotate.pack_tokens, "annotate.pack_tokens")
        return replace(
            whole,
            num_parts=annotate.tensor_parallel,
            split_setting=SETTING,
            cannot_split=lambda num_parts: cannot_split(self.preset, num_parts),
        )

    def _reading(self) -> PlannedForward:
        tokens, setting = self.preset.bootstrap.learner.pack_tokens, "bootstrap.learner.pack_tokens"
        what = "sampling.pool, where SteerLM 2.0 reads answers on one GPU,"
        return _reading(what, self.preset.sampling.pool, "sampling.pool", tokens, setting)

    def _write_line(self, rated: Mapping[str, float] | None = None) -> str:
        """`rated`: what its actors hold to rate answers, too."""
        pool, shape = self.preset.sampling.pool, self.shapes.base
        if shape is None:
            return f"{_actors(pool)}, memory unknown{f', but {listed(rated)} GiB' if rated else ''}"
        return f"{_actors(pool)}; {replace(self._engine(shape), beside=rated or {}).line(shape)}"

    def _rated(self) -> dict[str, float]:
        return self._annotating().parts(self.shapes.predictor, "predictor")

    def _engines(self, shape: ModelShape) -> Iterator[PlannedEngine]:
        """All that write answers, each with the most that its actors hold beside it."""
        engine, predictor = self._engine(shape), self.shapes.predictor
        if one_pool(self.preset):
            alone = f"annotate.pool.num_actors other than {self.preset.annotate.pool.num_actors}, so that others rate"
            fits = predictor is None or not self._annotating().problem(predictor)
            engine = replace(engine, beside=self._rated(), apart=alone if fits else "")
        yield engine
        if table := self._table_engine(shape):
            yield table

    def _engine(self, shape: ModelShape) -> PlannedEngine:
        return self._engine_for(self.preset.sampling.guidance, "sampling.guidance", shape)

    def _table_engine(self, shape: ModelShape) -> PlannedEngine | None:
        """Of the report's answers with each of evaluate.guidance; None = one as for all other answers."""
        is_guided = self.preset.sampling.guidance is not None
        strengths = (g for g in self.preset.evaluate.guidance or () if (g != 1) != is_guided)
        strength = next(strengths, None)
        return None if strength is None else self._engine_for(strength, "evaluate.guidance", shape)

    def _engine_for(self, guidance: float | None, setting: str, shape: ModelShape) -> PlannedEngine:
        sampling, pool = self.preset.sampling, self.preset.sampling.pool
        settings = sampling.engine_for(guidance)
        asked = self.preset.policy.learner.max_tokens + sampling.max_tokens
        tokens = min(n for n in (asked, settings.max_model_len, shape.context) if n)
        place, guided_by = sampling_place(pool.gpus_per_actor), "" if guidance in (None, 1) else setting
        return PlannedEngine(
            settings, place, pool.dtype, pool.gpus_per_actor, tokens, _device_bytes(pool), guided_by=guided_by
        )


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
