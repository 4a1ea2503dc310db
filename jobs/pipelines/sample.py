"""Answers of a policy to many prompts, on a Ray Data actor pool. Shared by every stage that samples."""

from dataclasses import dataclass

from actors.generation.protocol import Sampling
from actors.generation.settings import CHANGES_TEXT
from actors.kernels.machine_memory import MachineShare
from data.attributes import Values
from data.stage_metrics import SamplingMetrics
from data.storage import Storage
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows
from jobs.runner.settings import SamplingSettings
from jobs.runner.stage import Run


@dataclass(frozen=True)
class GuidedBy:
    """How answers are guided."""

    guidance: float = 1.0
    """1 = not at all."""
    away_from: Values | None = None
    """Values that they are led away from; None = an answer without attributes."""


def sample(
    run: Run,
    what: str,
    policy: Storage,
    prompts: Storage,
    target: Storage,
    temperature: float,
    fingerprint: str = "",
    keep_too_long: bool = False,
    guided: GuidedBy | None = None,
) -> SamplingMetrics:
    """Answer all `prompts` with `policy` into `target` (with a `fingerprint`: those that are not answered yet).

    `keep_too_long`: see `Sampler`; `guided`: in place of the preset's guidance.
    """
    from actors.generation.sampler import Sampler  # with torch

    arguments, pool = sampler(run, policy, temperature, keep_too_long, guided), run.preset.sampling.pool
    done = map_rows(what, [prompts], Sampler, arguments, pool, target, fingerprint, "sampling.pool")
    return SamplingMetrics(
        **dict(done.metrics),
        tokens=int(done.counters["tokens"]),
        cut_off=int(done.counters["cut_off"]),
        actor_seconds=round(done.counters.get("wall_seconds", 0.0), 2),
        cpu_seconds=round(done.counters.get("cpu_seconds", 0.0), 2),
        audit=audit(what, [prompts], target, fingerprint),
    )


def sampler(
    run: Run, policy: Storage, temperature: float, keep_too_long: bool = False, guided: GuidedBy | None = None
) -> dict[str, object]:
    """The arguments of a Sampler."""
    settings, pool = run.preset.sampling, run.preset.sampling.pool
    guided = guided or GuidedBy(1.0 if settings.guidance is None else settings.guidance, settings.guidance_from)
    return {
        "policy": (policy / "model").uri,
        "schema": run.schema,
        "sampling": Sampling(
            settings.max_tokens,
            temperature=temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            guidance=guided.guidance,
        ),
        "guidance_from": guided.away_from,
        "engine": settings.engine_for(guided.guidance),
        "dtype": pool.dtype,
        "num_threads": max(1, int(pool.cpus_per_actor) // settings.engine.tensor_parallel),
        "keep_too_long": keep_too_long,
        "gpus": pool.gpus_per_actor,
        "share": MachineShare(pool.num_actors, pool.cpus_per_actor, pool.memory_gib),
    }


def sampling_settings(settings: SamplingSettings) -> object:
    """The settings that change an answer: all but the pool's size and batches, and the engine's memory.

    They are a part of fingerprints, so what came after runs were made is named only where it is set.
    """
    engine = settings.engine
    chosen = {name: getattr(engine, name) for name in engine.changed(CHANGES_TEXT)}
    own = {name: getattr(settings, name) for name in ("max_tokens", "temperature", "top_k", "top_p")}
    later = {name: getattr(settings, name) for name in SamplingSettings.LATER}
    set_later = {name: value for name, value in later.items() if value is not None}
    sampling = {"pool": None, "max_num_seqs": engine.max_num_seqs, **own, **set_later}
    return {"sampling": sampling, "dtype": settings.pool.dtype, **({"engine": chosen} if chosen else {})}
