"""Answers of a policy to many prompts, on a Ray Data actor pool. Shared by every stage that samples."""

from actors.generation.protocol import Sampling
from actors.generation.sampler import Sampler
from actors.generation.settings import CHANGES_TEXT
from data.stage_metrics import SamplingMetrics
from data.storage import Storage
from jobs.pipelines.audit import audit
from jobs.pipelines.map_rows import map_rows
from jobs.runner.settings import SamplingSettings
from jobs.runner.stage import Run


def sample(
    run: Run,
    what: str,
    policy: Storage,
    prompts: Storage,
    target: Storage,
    temperature: float,
    fingerprint: str = "",
    keep_too_long: bool = False,
) -> SamplingMetrics:
    """Answer all `prompts` with `policy` into `target` (with a `fingerprint`: those that are not answered yet).

    `keep_too_long`: see `Sampler`.
    """
    arguments, pool = sampler(run, policy, temperature, keep_too_long), run.preset.sampling.pool
    done = map_rows(what, [prompts], Sampler, arguments, pool, target, fingerprint, "sampling.pool")
    return SamplingMetrics(
        **dict(done.metrics),
        tokens=int(done.counters["tokens"]),
        cut_off=int(done.counters["cut_off"]),
        audit=audit(what, [prompts], target, fingerprint),
    )


def sampler(run: Run, policy: Storage, temperature: float, keep_too_long: bool = False) -> dict[str, object]:
    """The arguments of a Sampler."""
    settings = run.preset.sampling
    return {
        "policy": (policy / "model").uri,
        "schema": run.schema,
        "sampling": Sampling(settings.max_tokens, temperature=temperature, top_k=settings.top_k, top_p=settings.top_p),
        "engine": settings.engine,
        "dtype": settings.pool.dtype,
        "num_threads": max(1, int(settings.pool.cpus_per_actor)),
        "keep_too_long": keep_too_long,
        "gpus": settings.pool.gpus_per_actor,
    }


def sampling_settings(settings: SamplingSettings) -> object:
    """The settings that change an answer: all but the pool's size and batches, and the engine's memory.

    They are a part of fingerprints, so what came after runs were made is named only where it is set.
    """
    engine = settings.engine
    chosen = {name: getattr(engine, name) for name in engine.changed(CHANGES_TEXT)}
    own = {name: getattr(settings, name) for name in ("max_tokens", "temperature", "top_k", "top_p")}
    sampling = {"pool": None, "max_num_seqs": engine.max_num_seqs, **own}
    return {"sampling": sampling, "dtype": settings.pool.dtype, **({"engine": chosen} if chosen else {})}
