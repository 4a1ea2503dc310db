"""`python -m serve --plan`: what each replica will hold of its device, and the refusal of what cannot fit.

From config.json alone; starts nothing. Imports torch, so only the plan imports it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from actors.generation.planned_engine import PlannedEngine
from actors.generation.settings import ENDPOINT
from actors.modeling.model_memory import device_bytes
from actors.modeling.model_shape import ModelShape, read_config, shape_of
from actors.scoring.planned_forward import PlannedForward
from serve.locate import Located
from serve.settings import ServeSettings


@dataclass(frozen=True)
class ServePlan:
    """Of one endpoint."""

    settings: ServeSettings
    models: Sequence[Located]
    predictor: str | None

    def lines(self) -> Iterator[str]:
        """One for each model, and one for the predictor."""
        own = self.settings
        replicas = f"{own.min_replicas}" + (f" to {own.max_replicas}" if own.max_replicas > own.min_replicas else "")
        for model in self.models:
            shape = _shape(model.uri)
            what = f"model {model.name}, {shape.num_parameters:,} parameters: {replicas} replicas"
            engine = self.engine(shape)
            yield f"{what} x {_each(own.num_cpus, own.num_gpus)}; {own.engine.dtype}; {engine.line(shape)}"
        if self.predictor is not None:
            scorer, shape = self.scorer, _shape(self.predictor, predictor=True)
            what = f"predictor, {shape.num_parameters:,} parameters: 1 replica"
            each = _each(own.scorer.num_cpus, own.scorer.num_gpus)
            yield f"{what} x {each}; {scorer.dtype}; {scorer.line(shape)}"

    def problems(self) -> Iterator[str]:
        """Why a replica cannot hold its model, and the settings that help."""
        for model in self.models:
            shape = _shape(model.uri)
            if problem := self.engine(shape).problem(shape):
                yield problem
        if self.predictor is not None and (problem := self.scorer.problem(_shape(self.predictor, predictor=True))):
            yield problem

    def engine(self, shape: ModelShape) -> PlannedEngine:
        """Of a replica with a model of this shape."""
        own, wanted = self.settings, self.settings.engine.max_model_len
        tokens = min(n for n in (wanted, shape.context) if n) if wanted or shape.context else 1
        device = device_bytes(own.memory_gib, own.num_gpus > 0, len(self.models) * own.min_replicas)
        planned = PlannedEngine(own.engine, ENDPOINT, own.engine.dtype, own.num_gpus, tokens, device)
        # Without a limit an engine takes what its memory holds of one answer.
        return planned if wanted else replace(planned, tokens=planned.fitting_tokens(shape) or tokens)

    @property
    def scorer(self) -> PlannedForward:
        own, scorer = self.settings, self.settings.scorer
        dtype, setting = (scorer.dtype, "scorer.dtype") if scorer.dtype else (own.engine.dtype, "engine.dtype")
        device = device_bytes(own.memory_gib, scorer.num_gpus > 0, 1)
        tokens, of_tokens = scorer.pack_tokens, "scorer.pack_tokens"
        return PlannedForward("scorer", dtype, setting, tokens, of_tokens, scorer.num_gpus, device)


def _each(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "")


def _shape(uri: str, predictor: bool = False) -> ModelShape:
    return shape_of(read_config(uri), predictor)
